"""The command `diptych loadtest`."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command(
    epilog="Example:\n"
    "  diptych loadtest http://127.0.0.1:8000 --rate 500 --duration 30s --queries queries.csv --html report.html\n"
    "  diptych loadtest http://127.0.0.1:8000 --sweep"
)
def loadtest(
    url: Annotated[str, typer.Argument(metavar="URL", help="The service, such as http://127.0.0.1:8000.")],
    rate: Annotated[float, typer.Option(help="Requests per second; with --sweep, of the first step.")] = 100,
    duration: Annotated[
        str | None, typer.Option(help="Such as 30s or 5m; default: 30s, with --sweep 5s per step.")
    ] = None,
    arrivals: Annotated[
        str,
        typer.Option(
            help="poisson: as from many users; constant: equal gaps.",
            autocompletion=lambda: ["poisson", "constant"],
        ),
    ] = "poisson",
    queries: Annotated[
        Path | None, typer.Option(help="File of queries, as `predict` reads it; default: built-in words.")
    ] = None,
    column: Annotated[str | None, typer.Option(help="Column of the queries; default: query, or text.")] = None,
    k: Annotated[int, typer.Option("-k", help="Hits per query.")] = 10,
    sweep: Annotated[bool, typer.Option("--sweep", help="Raise the rate until the service falls behind.")] = False,
    switch_every: Annotated[str | None, typer.Option(help="Switch the bundle at this interval, such as 5s.")] = None,
    bundles: Annotated[
        tuple[str, str] | None, typer.Option(help="The two bundles to switch between; default: the newest two.")
    ] = None,
    timeout: Annotated[str, typer.Option(help="Time after which an unanswered request has failed.")] = "15s",
    connections: Annotated[int, typer.Option(help="Maximum number of connections.")] = 1024,
    max_lag: Annotated[
        str | None, typer.Option(help="Largest valid p99 of the generator's lag; default: p99 latency / 4.")
    ] = None,
    confirmed: Annotated[
        bool, typer.Option("--target-is-mine", help="Confirm that you own this remote target.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    html: Annotated[Path | None, typer.Option(help="Also write the report as an HTML page.")] = None,
) -> None:
    """Measure a running service: rates, latencies, errors and capacity.

    Requests leave on schedule even if the service falls behind, and each
    latency counts from when its request was due. Ctrl-C stops early and
    prints the report. Exit code 1: the generator was the bottleneck, so the
    figures are invalid. The keys are read from DIPTYCH_PREDICT_KEY and, for
    --switch-every, DIPTYCH_ADMIN_KEY.
    """
    from loadtest.entry import main
    from loadtest.plan import Plan, parse_duration

    plan = Plan.from_options(
        rate=rate, duration=parse_duration(duration or ("5s" if sweep else "30s"), "--duration"), arrivals=arrivals,
        k=k, timeout=parse_duration(timeout, "--timeout"), connections=connections,
        max_lag=None if max_lag is None else parse_duration(max_lag, "--max-lag"),
        switch_every=None if switch_every is None else parse_duration(switch_every, "--switch-every"),
    )  # fmt: skip
    code = main(
        url, plan, queries=queries, column=column, rising=sweep, bundles=bundles, confirmed=confirmed,
        as_json=as_json, html=html,
    )  # fmt: skip
    if code:
        raise typer.Exit(code)
