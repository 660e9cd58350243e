"""Check the paths of folders that libraries write to."""

from pathlib import Path

from retrieval.errors import BadInput


def require_utf8(path: Path) -> None:
    """Raise BadInput if a path is not valid UTF-8: hnswlib and safetensors open no such path."""
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"{path}: the path of a store or a run must be valid UTF-8. Name another folder.") from error
