"""What a person sees: a line that moves while a run goes on, and tables at its end."""

from types import TracebackType
from typing import Self

from rich.box import SIMPLE
from rich.live import Live
from rich.table import Table
from rich.text import Text

from loadtest.report import Latencies, Report, SweepReport, Switching
from loadtest.run import Snapshot
from loadtest.sweep import held
from loadtest.tally import OK
from retrieval.system.console import Console

FIGURES = ("requests", "mean", "p50", "p90", "p99", "p99.9", "max")


class Ticker:
    """One line on stderr, drawn anew each time it is told where the run is; nothing where there is no terminal."""

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

    def __call__(self, at: Snapshot) -> None:
        if not self._live.is_started:
            return
        found = at.tally.outcomes.get(OK)
        p50, p99 = (milliseconds(value * 1e3) for value in found.quantiles((0.5, 0.99))) if found else ("–", "–")
        line = (
            f"{at.seconds:.0f} s {self._of} · {at.tally.sent:,} sent · {at.in_flight:,} under way · "
            f"p50 {p50} ms · p99 {p99} ms · {at.tally.failed:,} failed"
        )
        self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)


def print_run(report: Report, console: Console) -> None:
    """A run as tables, and in a sentence each what is wrong with it."""
    console.print(
        f"{report.url}: {report.rate:,g}/s asked for ({report.arrivals}, {report.queries:,} queries, k={report.k}), "
        f"{report.offered:,g}/s offered, {report.achieved:,g}/s achieved, for {report.seconds:g} s"
        + (", ended early" if report.interrupted else "")
    )
    table = _table("milliseconds", *FIGURES)
    table.add_row("answered, 200", *_figures(report.latency))
    for kind, found in sorted(report.outcomes.items()):
        if kind != OK:
            table.add_row(kind, *_figures(found))
    if report.switching:
        table.add_row("200 during switches", *_figures(report.switching.during))
        table.add_row("200 otherwise", *_figures(report.switching.steady))
    table.add_section()
    for stage, found in report.stages.items():
        table.add_row(f"service: {stage}", *_figures(found))
    table.add_row("the generator's lag", *_figures(report.lag))
    console.print(table)
    if report.switching:
        console.print(switches_line(report.switching))
    console.print(generator_line(report))
    _print_invalid(report.invalid, console)


def print_sweep(report: SweepReport, console: Console) -> None:
    """A sweep as one table, a row a rate."""
    table = _table("offered/s", "achieved/s", "p50", "p90", "p99", "p99.9", "max", "failed", "lag p99", "")
    for step in report.steps:
        at = step.latency
        shown = map(milliseconds, (at.p50_ms, at.p90_ms, at.p99_ms, at.p999_ms, at.max_ms))
        lag = milliseconds(step.lag.p99_ms)
        table.add_row(
            f"{step.offered:,.0f}", f"{step.achieved:,.0f}", *shown, f"{step.failed:,}", lag, word(step, report)
        )
    console.print(table)
    console.print(sweep_line(report))
    _print_invalid(report.invalid, console)


def sweep_line(report: SweepReport) -> str:
    """What a sweep found, and why it ended."""
    if report.knee is None or report.saturation is None:
        return f"No knee: {report.ended}. Begin with a lower --rate."
    return (
        f"The knee is at {report.knee:,.0f}/s (most throughput for its mean latency); "
        f"the most achieved was {report.saturation:,.0f}/s. The sweep stopped because {report.ended}."
    )


def word(step: Report, report: SweepReport) -> str:
    """What a step of a sweep is, in a word or two."""
    if step.offered == report.knee:
        return "knee"
    if step.late:
        return "invalid"
    return "" if held(step) else "too much"


def switches_line(switching: Switching) -> str:
    """How many changes of bundle went well, how long they took, and the first failure."""
    done = [one for one in switching.switches if one.failure is None and one.ended_seconds is not None]
    taken = sorted((one.ended_seconds or 0) - one.began_seconds for one in done)
    failed = [one for one in switching.switches if one.failure]
    line = f"{len(done)} of {len(switching.switches)} switches done"
    if taken:
        line += f", median {taken[len(taken) // 2]:.2f} s"
    ratio = switching.during.p99_ms / switching.steady.p99_ms if switching.steady.p99_ms else 0
    if switching.during.count and ratio:
        line += f"; p99 during switches is {ratio:.2f} of the steady one"
    return f"{line}; first failure: {failed[0].failure}" if failed else f"{line}."


def generator_line(report: Report) -> str:
    """What the generator itself did."""
    bundles = ", ".join(f"{name} {count:,}" for name, count in report.bundles.items())
    waited = f", {report.waited:,} requests waited for one" if report.waited else ""
    return (
        f"Generator: {report.busy:.0%} of a core, {report.connections:,} connections{waited}. "
        f"Bundles: {bundles or 'not named'}."
    )


def milliseconds(value: float) -> str:
    """Three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _print_invalid(reasons: tuple[str, ...], console: Console) -> None:
    for reason in reasons:
        console.print(f"INVALID: {reason}", style="bold red")


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE, pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if not place and column == "milliseconds" else "right")
    return table


def _figures(found: Latencies) -> list[str]:
    values = (found.mean_ms, found.p50_ms, found.p90_ms, found.p99_ms, found.p999_ms, found.max_ms)
    return [f"{found.count:,}", *(map(milliseconds, values) if found.count else ["–"] * len(values))]
