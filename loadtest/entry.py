"""`diptych loadtest`: from options to a run or a sweep, its report, and an exit code."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import uvloop

from loadtest import page
from loadtest.console import Ticker, print_run, print_sweep
from loadtest.plan import Plan, bodies
from loadtest.report import Report, SweepReport
from loadtest.run import run
from loadtest.sweep import sweep
from loadtest.switching import Switcher
from loadtest.target import Target
from retrieval.errors import BadInput
from retrieval.system import stopping
from retrieval.system.console import Console
from retrieval.system.terminal import print_json

ADMIN_KEY, PREDICT_KEYS = "DIPTYCH_ADMIN_KEY", "DIPTYCH_PREDICT_KEY"  # as the service itself is given them
INVALID = 1


def main(
    url: str, plan: Plan, *, queries: Path | None, column: str | None, rising: bool, bundles: tuple[str, str] | None,
    mine: bool, as_json: bool, html: Path | None,
) -> int:  # fmt: skip
    """Run, report, and return the exit code: 1 for figures that are not valid, 130 or 143 for a run that was ended.

    Raises BadInput for a target or a query that cannot be used.
    """
    if rising and plan.switch_every:
        raise BadInput("--sweep and --switch-every ask different questions; run them one after the other.")
    asked = bodies(queries, column, plan.k)
    key = os.environ.get(PREDICT_KEYS, "").partition(",")[0].strip()
    target = Target.find(url, mine=mine, key=key or None)
    switcher = _switcher(target, plan, bundles)
    if html:
        html.touch()  # rather now than after an hour
    report = uvloop.run(_measure(target, plan, asked, switcher, rising=rising))
    if html:
        drawn = page.sweep_page(report) if isinstance(report, SweepReport) else page.run_page(report)
        html.write_text(drawn, encoding="utf-8")
    if as_json:
        print_json(report.model_dump(mode="json"))
    elif isinstance(report, SweepReport):
        print_sweep(report, _console())
    else:
        print_run(report, _console())
    return 128 + (stopping.requested() or signal.SIGINT) if report.interrupted else INVALID if report.invalid else 0


async def _measure(
    target: Target, plan: Plan, asked: list[bytes], switcher: Switcher | None, *, rising: bool
) -> Report | SweepReport:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, _end, number, stop)
    await target.check(asked[0])
    if switcher:
        await switcher.prepare()

    async def one(step: Plan) -> Report:
        with Ticker(step.rate, step.duration) as ticker:
            return await run(target, asked, step, stop, ticker, switcher)

    try:
        return await sweep(plan, one) if rising else await one(plan)
    finally:
        if switcher and (failure := await switcher.restore()):
            print(failure, file=sys.stderr)


def _end(number: int, stop: asyncio.Event) -> None:
    stopping.note(number)
    stop.set()


def _switcher(target: Target, plan: Plan, bundles: tuple[str, str] | None) -> Switcher | None:
    if not plan.switch_every:
        if bundles:
            raise BadInput("--bundles says what to switch between; say how often with --switch-every.")
        return None
    if not (key := os.environ.get(ADMIN_KEY)):
        raise BadInput(f"--switch-every needs the administrator's key in {ADMIN_KEY}.")
    return Switcher(target, bundles, key, plan.switch_every)


def _console() -> Console:
    console = Console(markup=False, highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(markup=False, highlight=False, soft_wrap=True, width=160)
