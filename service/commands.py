"""`diptych serve` and `diptych loadtest`."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command(epilog="Example:\n  diptych serve --store store --port 8000")
def serve(
    store: Annotated[Path | None, typer.Option(help="Folder or URL of the store. [DIPTYCH_STORE]")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [DIPTYCH_HOST, else 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one. [DIPTYCH_PORT, else 8000]")] = None,
) -> None:
    """Answer POST /predict from a store's active bundle.

    Every limit is an environment variable (DIPTYCH_MAX_K, DIPTYCH_DEADLINE_SECONDS …); DIPTYCH_ADMIN_KEY turns
    administration on. SIGTERM finishes what was begun and ends with exit code 0.
    """
    from service.server import run
    from service.settings import Settings

    run(Settings.load(store=store, host=host, port=port))


@app.command(
    epilog="Example:\n"
    "  diptych loadtest http://127.0.0.1:8000 --rate 500 --duration 30s --queries queries.csv --html report.html\n"
    "  diptych loadtest http://127.0.0.1:8000 --sweep"
)
def loadtest(
    url: Annotated[str, typer.Argument(metavar="URL", help="The service, such as http://127.0.0.1:8000.")],
    rate: Annotated[float, typer.Option(help="Requests a second; with --sweep, of the first step.")] = 100,
    duration: Annotated[str | None, typer.Option(help="Such as 30s or 5m; 30s by default, 5s a step.")] = None,
    arrivals: Annotated[
        str,
        typer.Option(
            help="poisson: as from many users; constant: evenly.", autocompletion=lambda: ["poisson", "constant"]
        ),
    ] = "poisson",
    queries: Annotated[
        Path | None, typer.Option(help="Queries, in any form that `predict` reads; plain words if none.")
    ] = None,
    column: Annotated[str | None, typer.Option(help="Column of the queries; default: query, or text.")] = None,
    k: Annotated[int, typer.Option("-k", help="Hits for each query.")] = 10,
    sweep: Annotated[bool, typer.Option("--sweep", help="Raise the rate until the service falls behind.")] = False,
    switch_every: Annotated[str | None, typer.Option(help="Change the bundle this often, such as 5s.")] = None,
    bundles: Annotated[
        tuple[str, str] | None, typer.Option(help="The two that take turns; default: the newest.")
    ] = None,
    timeout: Annotated[str, typer.Option(help="An answer later than this has failed.")] = "15s",
    connections: Annotated[int, typer.Option(help="How many there may be at once.")] = 1024,
    max_lag: Annotated[
        str | None, typer.Option(help="Largest p99 of its own lag; default: a quarter of the p99.")
    ] = None,
    mine: Annotated[
        bool,
        typer.Option(
            "--target-is-mine", help="Say so where the service runs on another machine: load is for one's own."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write the report as an HTML page too.")] = None,
) -> None:
    """Measure a running service: rates, latencies, errors, and where its knee is.

    Requests leave on schedule whether or not the service keeps up,
    and latencies count from when each was due. Ctrl-C ends early and reports.
    Exit code 1: the generator was the bottleneck; its figures are not valid.
    Keys stand where the service has them, in DIPTYCH_PREDICT_KEY and,
    for --switch-every, in DIPTYCH_ADMIN_KEY.
    """
    from loadtest.entry import main
    from loadtest.plan import Plan, seconds

    plan = Plan.of(
        rate=rate, duration=seconds(duration or ("5s" if sweep else "30s"), "--duration"), arrivals=arrivals, k=k,
        timeout=seconds(timeout, "--timeout"), connections=connections,
        max_lag=None if max_lag is None else seconds(max_lag, "--max-lag"),
        switch_every=None if switch_every is None else seconds(switch_every, "--switch-every"),
    )  # fmt: skip
    code = main(
        url, plan, queries=queries, column=column, rising=sweep, bundles=bundles, mine=mine, as_json=as_json, html=html
    )
    if code:
        raise typer.Exit(code)
