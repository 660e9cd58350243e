"""The commands `diptych search`, `diptych predict` and `diptych bundles`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from retrieval.store.completion import bundle_names
from retrieval.system.terminal import echo, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from retrieval.retriever import Hit
    from retrieval.store.local import Store
    from retrieval.store.remote import Remote

app = typer.Typer()
bundles = typer.Typer(
    help="Manage the bundles of a store.",
    no_args_is_help=True,
    epilog="Example:\n  diptych bundles list store\n  diptych bundles activate store NAME",
)
app.add_typer(bundles, name="bundles")

StoreArgument = Annotated[Path, typer.Argument(metavar="STORE", help="Folder of the store.")]
ReadArgument = Annotated[str, typer.Argument(metavar="STORE", help="Folder or URL of the store.")]
ANY_BUNDLE = "A store (its active bundle) or one bundle: a folder, or a URL such as s3://bucket/store."
NameArgument = Annotated[
    str,
    typer.Argument(metavar="NAME", help="Name of a bundle, as `bundles list` shows it.", autocompletion=bundle_names),
]
LOOK, CHANGE, TRUST = "Look", "Change", "Trust"

CountOption = Annotated[int, typer.Option("-k", min=1, help="Labels per query.")]
WeightOption = Annotated[
    float | None, typer.Option(min=0, max=1, help="The classifier's share of the score; default: from training.")
]
FilterOption = Annotated[
    list[str] | None,
    typer.Option("--filter", metavar="NAME=VALUE,…", help="Only labels with one of these values; repeatable."),
]
MinScoreOption = Annotated[float | None, typer.Option(help="Leave out labels that score less.")]


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
    filters: FilterOption = None,
    min_score: MinScoreOption = None,
    exact: Annotated[bool, typer.Option("--exact", help="Compare with every label, not through the index.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Ask a bundle for the best labels of one or more queries."""
    from retrieval.bundle.signatures import trusted_keys
    from retrieval.errors import BadInput
    from retrieval.query_text import is_blank
    from retrieval.retriever import Retriever

    if (empty := next((place for place, query in enumerate(queries) if is_blank(query)), None)) is not None:
        raise BadInput(f"query {empty} is empty. Give it text.")
    with Retriever.open(_folder(store), trusted=trusted_keys()) as retriever:
        wanted = retriever.filter_of(filters or [])
        answers = retriever.search(queries, k, weight=weight, filter=wanted, min_score=min_score, exact=exact)
        name = retriever.name
    if as_json:
        print_json({"bundle": name, "results": [_as_json(*answer) for answer in zip(queries, answers, strict=True)]})
        return
    from retrieval.system.console import Console

    console = Console(markup=False)
    for query, hits in zip(queries, answers, strict=True):
        console.print(_table(query, hits, name))


@app.command(epilog="Example:\n  diptych predict --bundle store --input queries.parquet --output matches.parquet -k 10")
def predict(
    bundle: Annotated[str, typer.Option(help=ANY_BUNDLE)],
    source: Annotated[Path, typer.Option("--input", help="Queries: CSV, TSV, JSONL or Parquet, or a folder of these.")],
    output: Annotated[Path, typer.Option(help="Matches, one row per hit: .parquet, .csv or .jsonl.")],
    column: Annotated[str | None, typer.Option(help="Column of the queries; default: query, or text.")] = None,
    k: CountOption = 10,
    weight: WeightOption = None,
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
    threads: Annotated[int | None, typer.Option(min=1, help="Native threads; default: all cores.")] = None,
) -> None:
    """Match a table of queries. Rerun the same command to resume.

    Every row is answered, or skipped and counted by reason.
    """
    from rich.progress import Progress

    from retrieval.bundle.signatures import trusted_keys
    from retrieval.offline.batch_search import Reading, Wanted, match
    from retrieval.retriever import Retriever
    from retrieval.system.console import Console
    from retrieval.system.stopping import StopRequested
    from retrieval.tables.delimited import Layout

    reading = Reading(column, Layout.of(separator, quoting), skip_bad_rows)
    with (
        Retriever.open(_folder(bundle), threads=threads, trusted=trusted_keys()) as retriever,
        Progress(console=Console(stderr=True)) as bars,
    ):
        bar = bars.add_task("matching", total=None)
        wanted = Wanted(k, weight, retriever.filter_of(filters or []) or None, min_score)
        try:
            found = match(
                retriever, source, output, reading, wanted,
                lambda done, total: bars.update(bar, completed=done, total=total), guard_formulas=guard_formulas,
            )  # fmt: skip
        except (KeyboardInterrupt, StopRequested) as stopped:
            echo("Stopped. The same command goes on from here.", err=True)
            raise typer.Exit(stopped.code if isinstance(stopped, StopRequested) else 130) from None
        name = retriever.name
    echo(f"{found.matches:,} matches from bundle {name}: {output}")
    echo("\n".join(found.account.report("answered")))
    for sentence in (*found.skipped_first, *found.observations):
        echo(f"  {sentence}")


@bundles.command("list", rich_help_panel=LOOK)
def list_bundles(store: ReadArgument) -> None:
    """List the bundles of a store, oldest first; a star marks the active one."""
    from rich.table import Table

    from retrieval.bundle.signatures import NotTrusted
    from retrieval.errors import BundleError, Unreachable
    from retrieval.system.console import Console

    opened = _opened(store)
    active, names = opened.active(), opened.bundles()
    if not names:
        raise BundleError(f"{store} holds no bundles. Make one with `diptych export CHECKPOINT --store {store}`.")
    table = Table("", "bundle", "created", "labels", "dataset", box=None)
    rows = []
    for name in names:
        try:
            manifest = opened.manifest(name)
            facts = (manifest.created, f"{manifest.labels.count:,}", manifest.source.dataset)
        except Unreachable:
            raise
        except NotTrusted:
            facts = ("not trusted", "", "")
        except BundleError:
            facts = ("unreadable", "", "")  # `bundles verify` says why
        rows.append(("*" * (name == active), name, *facts))
    for row in sorted(rows, key=lambda row: row[2] if row[3] else ""):  # behind a URL names come by the alphabet
        table.add_row(*row)
    Console(markup=False).print(table)


@bundles.command(rich_help_panel=LOOK)
def show(store: ReadArgument, name: NameArgument) -> None:
    """Print a bundle's manifest."""
    print_json(_opened(store).manifest(name).model_dump(mode="json"))


@bundles.command(rich_help_panel=LOOK)
def verify(store: ReadArgument, name: NameArgument) -> None:
    """Compare a bundle's files with its manifest, and its answers with its golden ones."""
    from retrieval.bundle.signatures import trusted_keys
    from retrieval.sandboxed_opening import prove_aside

    report = prove_aside(_folder(store, name), trusted_keys())
    echo(f"{name} is whole: {report}.")


@bundles.command(
    "pull",
    rich_help_panel=CHANGE,
    epilog="Example:\n  diptych bundles pull s3://bucket/store --store store --activate",
)
def pull_bundle(
    url: Annotated[str, typer.Argument(metavar="URL", help="A store, or one bundle, such as s3://bucket/store.")],
    name: Annotated[str | None, typer.Option(help="Name of a bundle; default: the active one.")] = None,
    store: Annotated[Path | None, typer.Option(help="Folder of the local store; default: the cache.")] = None,
    activate: Annotated[bool, typer.Option("--activate", help="Make it the active bundle of --store.")] = False,
) -> None:
    """Fetch a bundle from a URL into a local store, unless it is there."""
    from retrieval.bundle.signatures import trusted_keys
    from retrieval.errors import BadInput
    from retrieval.store.download_progress import download_bar
    from retrieval.store.local import Store
    from retrieval.store.pull import fetch, pull

    if activate and store is None:
        raise BadInput("--activate needs --store: in the cache the bundle is active that is active at the URL.")
    with download_bar() as progress:
        if store is None:
            folder = fetch(url, name, trusted=trusted_keys(), progress=progress)
        else:
            opened = Store(store, trusted=trusted_keys())
            folder = opened.bundle_path(pull(url, opened, name, trusted=trusted_keys(), progress=progress))
    if activate:
        opened.activate(folder.name)
    echo(f"{'Active' if activate else 'Here'}: {folder}")


@bundles.command(rich_help_panel=CHANGE)
def activate(store: StoreArgument, name: NameArgument) -> None:
    """Verify a bundle and make it the active one."""
    _store(store).activate(name)
    echo(f"{name} is active.")


@bundles.command(rich_help_panel=CHANGE)
def rollback(store: StoreArgument) -> None:
    """Reactivate the previous bundle."""
    echo(f"{_store(store).rollback()} is active again.")


@bundles.command(rich_help_panel=CHANGE, epilog="Example:\n  diptych bundles prune store --keep 2")
def prune(
    store: StoreArgument,
    keep: Annotated[int, typer.Option(min=0, help="Newest bundles to keep, in addition to those in use.")] = 3,
) -> None:
    """Remove old bundles. The active one, its predecessor and those that a process has open stay."""
    opened = _store(store)
    removed = opened.prune(keep)
    echo(f"Removed {', '.join(removed)}." if removed else "There was nothing to remove.")
    if undated := opened.undated():
        echo(f"Not removed, since the manifest has no date: {', '.join(undated)}.", err=True)


@bundles.command(rich_help_panel=TRUST)
def keygen() -> None:
    """Print a new key pair: a secret signing key, and the key for readers to trust."""
    from retrieval.bundle.signatures import SIGNING_KEY, TRUSTED_KEYS, new_keys

    keys = new_keys()
    echo(f"{SIGNING_KEY}={keys.signing}\n{TRUSTED_KEYS}={keys.trusted}")


@bundles.command(rich_help_panel=TRUST)
def sign(
    store: StoreArgument,
    name: NameArgument,
    serial: Annotated[
        int | None,
        typer.Option(min=1, help="Serial number; default: the time, or one more than the highest in the store."),
    ] = None,
) -> None:
    """Verify a bundle and sign it with the key in DIPTYCH_SIGNING_KEY, and with a serial number.

    Readers with trusted keys refuse a bundle with a lower number than was active before, unless they roll back to it.
    """
    from retrieval.bundle.signatures import signing_key
    from retrieval.store.local import Store

    number = Store(store).sign(name, signing_key(), serial)
    echo(f"{name} is signed, with serial number {number}.")


@bundles.command(
    rich_help_panel=LOOK, epilog="Example:\n  diptych bundles diff store OLD NEW --queries queries.csv --moved 20"
)
def diff(
    store: ReadArgument,
    one: Annotated[str, typer.Argument(metavar="A", help="Name of a bundle.", autocompletion=bundle_names)],
    other: Annotated[str, typer.Argument(metavar="B", help="Name of another one.", autocompletion=bundle_names)],
    queries: Annotated[
        Path,
        typer.Option(help="Queries for both bundles, as `predict` reads them; column labels: lists of true ids."),
    ],
    column: Annotated[str | None, typer.Option(help="Column of the queries; default: query, or text.")] = None,
    k: CountOption = 10,
    most: Annotated[int, typer.Option(min=1, help="Maximum number of queries, from the beginning.")] = 10_000,
    show_moved: Annotated[int, typer.Option("--moved", min=0, help="How many changed queries to show.")] = 10,
) -> None:
    """Compare the answers of two bundles: agreement, what moved, and which is better if true labels are given."""
    from retrieval.bundle.signatures import trusted_keys
    from retrieval.offline.comparison import difference
    from retrieval.offline.comparison_console import show as show_difference
    from retrieval.offline.query_files import Queries
    from retrieval.retriever import Retriever

    asked = Queries(queries, column)
    texts, truths = asked.first(most)
    if asked.account is not None:
        echo("\n".join(asked.account.report("asked")))
    both = (Retriever.open(_folder(store, name), trusted=trusted_keys()) for name in (one, other))
    with next(both) as before, next(both) as after:
        show_difference(difference(before, after, texts, truths, k), show_moved)


def _opened(store: str) -> "Store | Remote":
    """Open a store for reading, in a folder or behind a URL."""
    from retrieval.store.urls import as_url

    if as_url(store) is not None:
        from retrieval.bundle.signatures import trusted_keys
        from retrieval.store.remote import Remote

        return Remote(store, trusted_keys())
    return _store(store)


def _store(path: Path | str) -> "Store":
    """Open a store in a folder; with trusted keys, only signed bundles are used."""
    from retrieval.bundle.signatures import trusted_keys
    from retrieval.store.local import Store

    return Store(path, trusted=trusted_keys())


def _folder(place: str, name: str | None = None) -> Path:
    """Return what `Retriever.open` opens: the bundle `name` of a store, or the place itself; URLs are fetched."""
    from retrieval.store.urls import as_url

    if as_url(place) is not None:
        from retrieval.bundle.signatures import trusted_keys
        from retrieval.store.download_progress import download_bar
        from retrieval.store.pull import at_hand

        with download_bar() as progress:
            return at_hand(place, name, trusted=trusted_keys(), progress=progress, tell=_warn)
    return Path(place) if name is None else _store(place).bundle_path(name)


def _warn(said: str) -> None:
    echo(f"warning: {said}", err=True)


def _table(query: str, hits: "list[Hit]", bundle: str) -> "Table":
    from rich.table import Table

    table = Table(title=query, caption=f"bundle {bundle}", title_justify="left", caption_justify="left")
    for column in ("score", "dual encoder", "classifier"):
        table.add_column(column, justify="right")
    table.add_column("label", overflow="fold")
    attributes = list(hits[0].attributes) if hits else []
    for column in attributes:
        table.add_column(column, overflow="fold")
    for hit in hits:
        figures = (f"{value:.3f}" for value in (hit.score, hit.dual_encoder, hit.classifier))
        table.add_row(*figures, hit.text, *(_cell(hit.attributes[name]) for name in attributes))
    return table


def _cell(value: Any) -> str:
    return "" if value is None else str(value)


def _as_json(query: str, hits: "list[Hit]") -> dict[str, Any]:
    from dataclasses import asdict

    return {"query": query, "hits": [asdict(hit) for hit in hits]}
