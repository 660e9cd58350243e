"""`diptych serve`."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command(epilog="Example:\n  diptych serve --store store --port 8000")
def serve(
    store: Annotated[Path | None, typer.Option(help="Folder or URL of the store. [DIPTYCH_STORE]")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [DIPTYCH_HOST, else 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 for any free port. [DIPTYCH_PORT, else 8000]")] = None,
) -> None:
    """Answer POST /predict from a store's active bundle.

    Every limit is an environment variable with a safe default (DIPTYCH_MAX_K, DIPTYCH_DEADLINE_SECONDS …).
    DIPTYCH_ADMIN_KEY enables the admin routes. On SIGTERM the service finishes the admitted requests and exits with 0.
    """
    from service.server import run
    from service.settings import Settings

    run(Settings.load(store=store, host=host, port=port))
