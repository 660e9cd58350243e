"""Console output: a progress line during a run, and tables at its end."""

from types import TracebackType
from typing import Self

from rich.box import SIMPLE
from rich.live import Live
from rich.table import Table
from rich.text import Text

from loadtest.report import LatencySummary, Report, SweepReport, SwitchingReport
from loadtest.run import Snapshot
from loadtest.run_stats import OK
from loadtest.sweep import kept_up
from retrieval.system.console import Console

LATENCY_HEADINGS = ("requests", "mean", "p50", "p90", "p99", "p99.9", "max")
SWEEP_HEADINGS = ("offered/s", "achieved/s", "p50", "p90", "p99", "p99.9", "max", "failed", "lag p99", "")


class ProgressLine:
    """One line on stderr, updated with each snapshot; nothing if stderr is not a terminal."""

    def __init__(self, rate: float, seconds: float) -> None:
        self._of = f"of {seconds:g} s at {rate:,g}/s"
        self._console = Console(stderr=True)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)  # a thread would disturb the loop

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._live.stop()

    def __call__(self, snapshot: Snapshot) -> None:
        if not self._live.is_started:
            return
        stats = snapshot.stats
        quantiles = stats.outcomes[OK].quantiles((0.5, 0.99)) if OK in stats.outcomes else ()
        p50, p99 = (_milliseconds(value * 1e3) for value in quantiles) if quantiles else ("–", "–")
        line = (
            f"{snapshot.seconds:.0f} s {self._of} · {stats.sent:,} sent · {snapshot.in_flight:,} in flight · "
            f"p50 {p50} ms · p99 {p99} ms · {stats.failed:,} failed"
        )
        self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)


def print_report(report: Report | SweepReport, console: Console) -> None:
    """Print the tables of a run or a sweep, and the reasons why its figures are invalid."""
    (_print_sweep if isinstance(report, SweepReport) else _print_run)(report, console)  # type: ignore[arg-type]
    for reason in report.invalid:
        console.print(f"INVALID: {reason}", style="bold #d14d68")


def _print_run(report: Report, console: Console) -> None:
    console.print(
        f"{report.url}: {report.rate:,g}/s requested ({report.arrivals}, {report.queries:,} queries, k={report.k}), "
        f"{report.offered:,g}/s offered, {report.achieved:,g}/s achieved, for {report.seconds:g} s"
        + (", interrupted" if report.interrupted else "")
    )
    outcomes = {"answered, 200": report.latency}
    outcomes |= {kind: latency for kind, latency in sorted(report.outcomes.items()) if kind != OK}
    if report.switching:
        outcomes |= {"200 during switches": report.switching.during, "200 otherwise": report.switching.steady}
    stages = {f"service: {stage}": latency for stage, latency in report.stages.items()}
    stages["generator lag"] = report.lag
    table = _table("milliseconds", *LATENCY_HEADINGS)
    for rows in (outcomes, stages):
        for name, latency in rows.items():
            table.add_row(name, *_latency_cells(latency))
        table.add_section()
    console.print(table)
    if report.switching:
        console.print(_switching_sentence(report.switching))
    bundles = ", ".join(f"{name} {count:,}" for name, count in report.bundles.items())
    waited = f", {report.waited:,} requests waited for one" if report.waited else ""
    console.print(
        f"Generator: {report.cpu:.0%} of a core, {report.connections:,} connections{waited}. "
        f"Bundles: {bundles or 'not named'}."
    )


def _print_sweep(report: SweepReport, console: Console) -> None:
    table = _table(*SWEEP_HEADINGS)
    for step in report.steps:
        at = step.latency
        cells = map(_milliseconds, (at.p50_ms, at.p90_ms, at.p99_ms, at.p999_ms, at.max_ms))
        label = "knee" if step.offered == report.knee else "invalid" if step.late else ""
        table.add_row(
            f"{step.offered:,.0f}", f"{step.achieved:,.0f}", *cells, f"{step.failed:,}",
            _milliseconds(step.lag.p99_ms), label or ("" if kept_up(step) else "overloaded"),
        )  # fmt: skip
    console.print(table)
    if report.knee is None or report.saturation is None:
        console.print(f"No knee: {report.ended}. Start with a lower --rate.")
        return
    console.print(
        f"The knee is at {report.knee:,.0f}/s (most throughput per mean latency); "
        f"the highest achieved rate was {report.saturation:,.0f}/s. The sweep stopped because {report.ended}."
    )


def _switching_sentence(switching: SwitchingReport) -> str:
    """State how many switches succeeded, their median time, and the first failure."""
    done = [switch for switch in switching.switches if switch.failure is None and switch.ended_seconds is not None]
    seconds = sorted((switch.ended_seconds or 0) - switch.started_seconds for switch in done)
    failures = [switch.failure for switch in switching.switches if switch.failure]
    text = f"{len(done)} of {len(switching.switches)} switches done"
    if seconds:
        text += f", median {seconds[len(seconds) // 2]:.2f} s"
    if switching.during.count and switching.steady.p99_ms:
        text += f"; p99 during switches is {switching.during.p99_ms / switching.steady.p99_ms:.2f} times the other p99"
    return f"{text}; first failure: {failures[0]}" if failures else f"{text}."


def _table(*headings: str) -> Table:
    table = Table(box=SIMPLE, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "milliseconds" else "right")
    return table


def _latency_cells(at: LatencySummary) -> list[str]:
    values = (at.mean_ms, at.p50_ms, at.p90_ms, at.p99_ms, at.p999_ms, at.max_ms)
    return [f"{at.count:,}", *(map(_milliseconds, values) if at.count else ["–"] * len(values))]


def _milliseconds(value: float) -> str:
    """Format with three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
