"""The command `diptych serve`."""

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
