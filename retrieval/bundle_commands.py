"""The commands `diptych bundles ...`, which show, change and sign the bundles of a store."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retrieval.command_options import (
    CountOption,
    NameArgument,
    ReadArgument,
    StoreArgument,
    complete_bundle_name,
    local_path,
    store_of,
)
from retrieval.system.terminal import echo, print_json

if TYPE_CHECKING:
    from retrieval.milvus.server import MilvusServer
    from retrieval.store.local import Store
    from retrieval.store.remote import Remote

bundles = typer.Typer(
    help="Manage the bundles of a store.",
    no_args_is_help=True,
    epilog="Example:\n  diptych bundles list store\n  diptych bundles activate store NAME",
)
SHOW, CHANGE, SIGN = "Show and compare", "Change", "Sign"  # groups of commands in the help text


@bundles.command("list", rich_help_panel=SHOW)
def list_bundles(store: ReadArgument) -> None:
    """List the bundles of a store, oldest first; a star marks the active one."""
    from rich.table import Table

    from retrieval.bundle.signatures import NotTrusted
    from retrieval.errors import BundleError, Unreachable
    from retrieval.system.console import Console

    opened = _readable_store(store)
    active, names = opened.active(), opened.bundles()
    if not names:
        raise BundleError(f"{store} has no bundles. Create one with `diptych export CHECKPOINT --store {store}`.")
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
            facts = ("unreadable", "", "")  # `bundles verify` gives the reason
        rows.append(("*" * (name == active), name, *facts))
    for row in sorted(rows, key=lambda row: row[2] if row[3] else ""):  # a URL lists names in alphabetical order
        table.add_row(*row)
    Console(markup=False).print(table)


@bundles.command(rich_help_panel=SHOW)
def show(store: ReadArgument, name: NameArgument) -> None:
    """Print a bundle's manifest."""
    print_json(_readable_store(store).manifest(name).model_dump(mode="json"))


@bundles.command(rich_help_panel=SHOW)
def verify(store: ReadArgument, name: NameArgument) -> None:
    """Compare a bundle's files with its manifest, and its answers with its golden answers."""
    from retrieval.bundle.signatures import trusted_keys
    from retrieval.sandboxed_opening import verify_in_subprocess

    report = verify_in_subprocess(local_path(store, name), trusted_keys())
    echo(f"{name} is valid: {report}.")


@bundles.command(
    rich_help_panel=SHOW, epilog="Example:\n  diptych bundles diff store OLD NEW --queries queries.csv --changed 20"
)
def diff(
    store: ReadArgument,
    old: Annotated[str, typer.Argument(metavar="OLD", help="Name of a bundle.", autocompletion=complete_bundle_name)],
    new: Annotated[
        str, typer.Argument(metavar="NEW", help="Name of another bundle.", autocompletion=complete_bundle_name)
    ],
    queries: Annotated[
        Path,
        typer.Option(help="Queries, in the formats of `predict`; optional column labels: lists of true label ids."),
    ],
    column: Annotated[str | None, typer.Option(help="Column of the queries; default: query, or text.")] = None,
    k: CountOption = 10,
    max_queries: Annotated[
        int, typer.Option(min=1, help="Use at most this many queries, from the first one.")
    ] = 10_000,
    show_changed: Annotated[int, typer.Option("--changed", min=0, help="How many changed queries to show.")] = 10,
) -> None:
    """Compare the answers of two bundles: agreement, changed queries, and quality if true labels are given."""
    from retrieval.bundle.signatures import trusted_keys
    from retrieval.offline.comparison import compare_bundles
    from retrieval.offline.comparison_console import print_comparison
    from retrieval.offline.query_files import Queries
    from retrieval.open import open_bundle

    table = Queries(queries, column)
    texts, truths = table.first(max_queries)
    if table.account is not None:
        echo("\n".join(table.account.report("used")))
    retrievers = (open_bundle(local_path(store, name), trusted=trusted_keys()) for name in (old, new))
    with next(retrievers) as before, next(retrievers) as after:
        print_comparison(compare_bundles(before, after, texts, truths, k), show_changed)


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
    """Fetch a bundle from a URL into a local store, unless the store has it."""
    from retrieval.bundle.signatures import trusted_keys
    from retrieval.errors import BadInput
    from retrieval.open import cache_store
    from retrieval.store.download_bar import download_bar
    from retrieval.store.pull import fetch, pull

    if activate and store is None:
        raise BadInput("--activate needs --store. In the cache, the bundle that is active at the URL is active.")
    with download_bar() as progress:
        if store is None:
            folder = fetch(url, cache_store(url, trusted=trusted_keys()), name, progress=progress)
        else:
            opened = store_of(store)
            folder = opened.bundle_path(pull(url, opened, name, progress=progress))
    if activate:
        opened.activate(folder.name)
    echo(f"{'Active' if activate else 'Fetched'}: {folder}")


@bundles.command(
    rich_help_panel=CHANGE,
    epilog="Example:\n  DIPTYCH_MILVUS_URL=http://127.0.0.1:19530 diptych bundles load store NAME",
)
def load(
    store: StoreArgument,
    name: NameArgument,
    file: Annotated[
        str | None,
        typer.Option(
            help="Path of the file of `export --parquet` in the server's bucket, which the server reads itself; "
            "default: this command sends the vectors."
        ),
    ] = None,
) -> None:
    """Fill the collection of a bundle in Milvus, and wait until it is indexed.

    The server is that of DIPTYCH_MILVUS_URL. A collection that is complete stays as it is.
    """
    from retrieval.loading import index_rows
    from retrieval.milvus.collection import BundleCollection, with_server
    from retrieval.milvus.load_bar import load_bar

    opened = store_of(store)
    manifest, blocks = index_rows(opened.bundle_path(name), opened.trusted)

    def fill(server: "MilvusServer") -> str:
        collection = BundleCollection(server, manifest, name)
        if collection.is_filled():
            return f"{name} is in Milvus already: {collection.size:,} vectors in collection {collection.name}."
        with load_bar() as progress:
            if file is None:
                collection.fill(blocks, progress)
            else:
                collection.fill_from(file)
        return f"{name} is in Milvus: {collection.size:,} vectors in collection {collection.name}."

    echo(with_server(fill))


@bundles.command(rich_help_panel=CHANGE)
def activate(store: StoreArgument, name: NameArgument) -> None:
    """Verify a bundle and make it the active one."""
    store_of(store).activate(name)
    echo(f"{name} is active.")


@bundles.command(rich_help_panel=CHANGE)
def rollback(store: StoreArgument) -> None:
    """Reactivate the previous bundle."""
    echo(f"{store_of(store).rollback()} is active again.")


@bundles.command(rich_help_panel=CHANGE, epilog="Example:\n  diptych bundles prune store --keep 2")
def prune(
    store: StoreArgument,
    keep: Annotated[int, typer.Option(min=0, help="Newest bundles to keep, in addition to those in use.")] = 3,
) -> None:
    """Remove old bundles. The active bundle, its predecessor and open bundles are kept.

    With DIPTYCH_MILVUS_URL, collections with this prefix that no bundle of the store uses are removed as well.
    """
    import os

    from retrieval.milvus.settings import URL

    opened = store_of(store)
    removed = opened.prune(keep)
    echo(f"Removed {', '.join(removed)}." if removed else "There was nothing to remove.")
    if os.environ.get(URL):
        from retrieval.milvus.collection import prune_collections
        from retrieval.milvus.settings import milvus_settings

        manifests = [opened.manifest(name) for name in opened.bundles()]
        if collections := prune_collections(manifests, milvus_settings()):
            echo(f"Removed from Milvus: {', '.join(collections)}.")
    if undated := opened.undated():
        echo(f"Not removed, since the manifest has no date: {', '.join(undated)}.", err=True)


@bundles.command(rich_help_panel=SIGN)
def keygen() -> None:
    """Print a new key pair: a secret signing key, and the key for readers to trust."""
    from retrieval.bundle.signatures import SIGNING_KEY, TRUSTED_KEYS, new_keys

    keys = new_keys()
    echo(f"{SIGNING_KEY}={keys.signing}\n{TRUSTED_KEYS}={keys.trusted}")


@bundles.command(rich_help_panel=SIGN)
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
    from retrieval.open import open_store

    number = open_store(store).sign(name, signing_key(), serial)
    echo(f"{name} is signed, with serial number {number}.")


def _readable_store(store: str) -> "Store | Remote":
    """Open a store for reading, in a folder or behind a URL."""
    from retrieval.system.urls import as_url

    if as_url(store) is not None:
        from retrieval.bundle.signatures import trusted_keys
        from retrieval.store.remote import Remote

        return Remote(store, trusted_keys())
    return store_of(store)
