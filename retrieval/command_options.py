"""Arguments and options that several commands share, and the stores and bundles that they name."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retrieval.system.terminal import echo

if TYPE_CHECKING:
    from retrieval.store.local import Store


def complete_bundle_name(context: typer.Context, incomplete: str) -> list[str]:
    """Return the bundles of the store on the command line, newest first; none of a URL, so TAB waits for no network."""
    from retrieval.errors import DiptychError
    from retrieval.open import open_store

    store = context.params.get("store")
    try:
        names = open_store(str(store)).bundles() if store else []
    except (DiptychError, OSError):  # the command itself reports what is wrong with the store
        return []
    return [name for name in reversed(names) if name.startswith(incomplete)]


ANY_BUNDLE = "A store (its active bundle) or one bundle: a folder, or a URL such as s3://bucket/store."
StoreArgument = Annotated[Path, typer.Argument(metavar="STORE", help="Folder of the store.")]
ReadArgument = Annotated[str, typer.Argument(metavar="STORE", help="Folder or URL of the store.")]
NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="Name of a bundle, as `bundles list` shows it.", autocompletion=complete_bundle_name
    ),
]
CountOption = Annotated[int, typer.Option("-k", min=1, help="Labels per query.")]
WeightOption = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="The classifier's share of the score; default: the weight chosen in training."),
]
MemoryWeightOption = Annotated[
    float | None,
    typer.Option(min=0, help="Weight of the votes of training queries; default: the weight chosen in training."),
]
FilterOption = Annotated[
    list[str] | None,
    typer.Option("--filter", metavar="NAME=VALUE,…", help="Only labels with one of these values; repeatable."),
]
MinScoreOption = Annotated[float | None, typer.Option(help="Leave out labels that score less.")]


def store_of(path: Path | str) -> "Store":
    """Open a store in a folder; with trusted keys, only signed bundles are used."""
    from retrieval.bundle.signatures import trusted_keys
    from retrieval.open import open_store

    return open_store(path, trusted=trusted_keys())


def local_path(path: str, name: str | None = None) -> Path:
    """Return the folder of the bundle `name` of a store; without a name, `path` itself. A URL is fetched if needed."""
    from retrieval.system.urls import as_url

    if as_url(path) is not None:
        from retrieval.bundle.signatures import trusted_keys
        from retrieval.open import cache_store
        from retrieval.store.download_bar import download_bar
        from retrieval.store.pull import ensure_local

        store = cache_store(path, trusted=trusted_keys())
        with download_bar() as progress:
            return ensure_local(path, store, name, progress=progress, on_warning=_warn)
    return Path(path) if name is None else store_of(path).bundle_path(name)


def _warn(message: str) -> None:
    echo(f"warning: {message}", err=True)
