"""What a shell may offer where a command wants the name of a bundle."""

import typer


def bundle_names(context: typer.Context, incomplete: str) -> list[str]:
    """Bundles of the store that the line names, newest first; none of a URL: TAB must not wait for a network."""
    from retrieval.errors import DiptychError
    from retrieval.store.local import Store

    place = context.params.get("store")
    try:
        names = Store(str(place)).bundles() if place else []
    except (DiptychError, OSError):  # nothing to offer; the command itself says what is wrong with the store
        return []
    return [name for name in reversed(names) if name.startswith(incomplete)]
