"""From options to a run or a sweep, its report, and the exit code."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import uvloop

from loadtest.display.console import ProgressLine, print_report
from loadtest.plan import Plan, request_bodies
from loadtest.report import Report, SweepReport
from loadtest.run import run
from loadtest.sweep import sweep
from loadtest.switching import Switcher
from loadtest.target import Target
from retrieval.errors import BadInput
from retrieval.system import stopping
from retrieval.system.console import Console
from retrieval.system.terminal import print_json

ADMIN_KEY, PREDICT_KEY = "DIPTYCH_ADMIN_KEY", "DIPTYCH_PREDICT_KEY"  # the variables that the service reads too
INVALID = 1
PIPE_WIDTH = 160  # characters per line, if the output is not a terminal


def main(
    url: str, plan: Plan, *, queries: Path | None, column: str | None, rising: bool, bundles: tuple[str, str] | None,
    confirmed: bool, as_json: bool, html: Path | None,
) -> int:  # fmt: skip
    """Run, report, and return the exit code: 1 for invalid figures, 130 or 143 for an interrupted run.

    Raises BadInput for a target or a query that cannot be used.
    """
    if rising and plan.switch_every:
        raise BadInput("--sweep and --switch-every cannot be combined; run one after the other.")
    bodies = request_bodies(queries, column, plan.k)
    key = os.environ.get(PREDICT_KEY, "").partition(",")[0].strip()
    target = Target.resolve(url, confirmed=confirmed, key=key or None)
    switcher = _switcher(target, plan, bundles)
    if html:
        from loadtest.display.page import render  # fails before the run, not after it, if matplotlib is missing

        html.touch()
    report = uvloop.run(_measure(target, plan, bodies, switcher, rising=rising))
    if html:
        html.write_text(render(report), encoding="utf-8")
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        print_report(report, _console())
    if report.interrupted:
        return 128 + (stopping.requested() or signal.SIGINT)
    return INVALID if report.invalid else 0


async def _measure(
    target: Target, plan: Plan, bodies: list[bytes], switcher: Switcher | None, *, rising: bool
) -> Report | SweepReport:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, _stop, number, stop)
    await target.check(bodies[0])
    if switcher:
        await switcher.prepare()

    async def run_step(step: Plan) -> Report:
        with ProgressLine(step.rate, step.duration) as progress:
            return await run(target, bodies, step, stop, progress, switcher)

    try:
        return await sweep(plan, run_step) if rising else await run_step(plan)
    finally:
        if switcher and (failure := await switcher.restore()):
            print(failure, file=sys.stderr)


def _console() -> Console:
    options: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}
    console = Console(**options)
    return console if console.is_terminal else Console(**options, width=PIPE_WIDTH)


def _stop(number: int, stop: asyncio.Event) -> None:
    stopping.note(number)
    stop.set()


def _switcher(target: Target, plan: Plan, bundles: tuple[str, str] | None) -> Switcher | None:
    if not plan.switch_every:
        if bundles:
            raise BadInput("--bundles needs --switch-every, the time between two switches.")
        return None
    if not (key := os.environ.get(ADMIN_KEY)):
        raise BadInput(f"--switch-every needs the administrator's key in {ADMIN_KEY}.")
    return Switcher(target, bundles, key, plan.switch_every)
