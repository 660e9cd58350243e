"""The commands `diptych search` and `diptych predict`; `diptych bundles` is in bundle_commands."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from retrieval.bundle_commands import bundles
from retrieval.command_options import (
    ANY_BUNDLE,
    CountOption,
    FilterOption,
    MemoryWeightOption,
    MinScoreOption,
    WeightOption,
    local_path,
)
from retrieval.system.terminal import echo, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from retrieval.offline.shard_search import SearchEngine
    from retrieval.results import Hit
    from retrieval.retriever import Retriever

app = typer.Typer()
app.add_typer(bundles, name="bundles")


@app.command(
    epilog="Example:\n"
    '  diptych search store "cheap flights" -k 5\n'
    '  diptych search store "cheap flights" --filter market=US,CA --min-score 0.3'
)
def search(
    store: Annotated[str, typer.Argument(metavar="STORE", help=ANY_BUNDLE)],
    queries: Annotated[list[str], typer.Argument(metavar="QUERY...", help="One or more queries.")],
    k: CountOption = 10,
    weight: WeightOption = None,
    memory_weight: MemoryWeightOption = None,
    filters: FilterOption = None,
    min_score: MinScoreOption = None,
    exact: Annotated[bool, typer.Option("--exact", help="Compare all labels instead of searching the index.")] = False,
    supporting: Annotated[
        int, typer.Option(min=0, max=10, help="Training queries to show per hit, those that voted for it.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Search a bundle for the best labels of one or more queries."""
    from retrieval.bundle.signatures import trusted_keys
    from retrieval.errors import BadInput
    from retrieval.open import open_bundle
    from retrieval.query_text import is_blank
    from retrieval.results import hit_record

    if (empty := next((place for place, query in enumerate(queries) if is_blank(query)), None)) is not None:
        raise BadInput(f"query {empty} is empty. Give it text.")
    with open_bundle(local_path(store), trusted=trusted_keys()) as retriever:
        attribute_filter = retriever.parse_filter(filters or [])
        results = retriever.search(
            queries, k, weight=weight, filter=attribute_filter, min_score=min_score, exact=exact,
            memory_weight=memory_weight, supporting=supporting,
        )  # fmt: skip
        name = retriever.name
    if as_json:
        records = [
            {"query": query, "hits": [hit_record(hit, bool(supporting)) for hit in hits]}
            for query, hits in zip(queries, results, strict=True)
        ]
        print_json({"bundle": name, "results": records})
        return
    from retrieval.system.console import Console

    console = Console(markup=False)
    for query, hits in zip(queries, results, strict=True):
        console.print(_table(query, hits, name, bool(supporting)))


@app.command(epilog="Example:\n  diptych predict --bundle store --input queries.parquet --output matches.parquet -k 10")
def predict(
    bundle: Annotated[str, typer.Option(help=ANY_BUNDLE)],
    source: Annotated[
        Path, typer.Option("--input", help="Queries: CSV, TSV, JSONL or Parquet; a file, folder, pattern or URL.")
    ],
    output: Annotated[Path, typer.Option(help="Matches, one row per hit: .parquet, .csv or .jsonl.")],
    column: Annotated[str | None, typer.Option(help="Column of the queries; default: query, or text.")] = None,
    k: CountOption = 10,
    weight: WeightOption = None,
    memory_weight: MemoryWeightOption = None,
    filters: FilterOption = None,
    min_score: MinScoreOption = None,
    separator: Annotated[
        str | None, typer.Option(help="Separator of CSV and TSV; default: detected from the header.")
    ] = None,
    quoting: Annotated[
        Literal["auto", "csv", "none"],
        typer.Option(help="Quotes enclose cells (csv) or are text (none); auto: csv, but none for most .tsv."),
    ] = "auto",
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Skip invalid rows; they are counted and listed.")
    ] = False,
    guard_formulas: Annotated[
        bool,
        typer.Option("--guard-formulas", help="In CSV, put ' before texts that a spreadsheet would run as formulas."),
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Number of threads; default: one per core, or one per worker with --engine ray."),
    ] = None,
    engine: Annotated[
        Literal["embedded", "ray"],
        typer.Option(help="Where to search: in this process (embedded), or in workers of a Ray cluster (ray)."),
    ] = "embedded",
    workers: Annotated[int, typer.Option(min=1, help="Number of workers, each with the whole bundle; for ray.")] = 2,
    ray_address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Address of the Ray cluster, or auto; default: start one here."),
    ] = None,
) -> None:
    """Search for every query of a table and write a file of matches. Rerun the same command to resume.

    Every row is answered, or skipped and counted by reason.
    """
    from rich.progress import Progress

    from retrieval.bundle.signatures import trusted_keys
    from retrieval.offline.batch_search import QueryFormat, batch_search
    from retrieval.offline.shard_search import SearchOptions
    from retrieval.open import open_bundle
    from retrieval.system.console import Console
    from retrieval.system.stopping import StopRequested
    from retrieval.tables.delimited import Layout

    query_format = QueryFormat(column, Layout.of(separator, quoting), skip_bad_rows)
    with (
        open_bundle(local_path(bundle), threads=threads, trusted=trusted_keys()) as retriever,
        Progress(console=Console(stderr=True)) as bars,
    ):
        bar = bars.add_task("searching", total=None)
        options = SearchOptions(k, weight, retriever.parse_filter(filters or []) or None, min_score, memory_weight)
        try:
            on_ray = partial(_ray_engine, retriever, bundle, workers, threads, ray_address)
            result = batch_search(
                retriever, source, output, query_format, options,
                lambda done, total: bars.update(bar, completed=done, total=total), guard_formulas=guard_formulas,
                start_engine=on_ray if engine == "ray" else None,
            )  # fmt: skip
        except (KeyboardInterrupt, StopRequested) as stopped:
            echo("Stopped. Rerun the same command to resume.", err=True)
            raise typer.Exit(stopped.code if isinstance(stopped, StopRequested) else 130) from None
        name = retriever.name
    echo(f"{result.matches:,} matches from bundle {name}: {output}")
    echo("\n".join(result.account.report("answered")))
    for sentence in (*result.skipped_first, *result.observations):
        echo(f"  {sentence}")


def _ray_engine(
    retriever: "Retriever", bundle: str, workers: int, threads: int | None, address: str | None
) -> "SearchEngine":
    """Connect to a Ray cluster and start the workers. Raises BadInput."""
    from retrieval.bundle.signatures import trusted_keys
    from retrieval.errors import BadInput

    try:
        from retrieval.offline.ray_engine import RayEngine
    except ModuleNotFoundError as missing:
        raise BadInput(
            f"--engine ray needs the package {missing.name!r}, which is not installed. Install it with: pip install "
            "'diptych[ray]'"
        ) from missing
    return RayEngine(retriever, bundle, workers, threads=threads or 1, address=address, trusted=trusted_keys())


def _table(query: str, hits: "list[Hit]", bundle: str, supporting: bool) -> "Table":
    from rich.table import Table

    table = Table(title=query, caption=f"bundle {bundle}", title_justify="left", caption_justify="left")
    for column in ("score", "dual encoder", "classifier", "memory"):
        table.add_column(column, justify="right")
    table.add_column("label", overflow="fold")
    attributes = list(hits[0].attributes) if hits else []
    for column in [*attributes, *(["training queries"] if supporting else [])]:
        table.add_column(column, overflow="fold")
    for hit in hits:
        scores = (f"{value:.3f}" for value in (hit.score, hit.dual_encoder, hit.classifier, hit.memory))
        queries = ["; ".join(f"{one.query} ({one.share:.3f})" for one in hit.supporting)] if supporting else []
        table.add_row(*scores, hit.text, *(_cell(hit.attributes[name]) for name in attributes), *queries)
    return table


def _cell(value: Any) -> str:
    return "" if value is None else str(value)
