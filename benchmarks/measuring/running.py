"""Parts shared by benchmark programs: argument types, the dataset, and exit codes."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from retrieval.errors import DiptychError
from training.data.dataset import Dataset
from training.data.meta import read_meta
from training.prepare.prepare import prepare
from training.prepare.settings import PrepareSettings


def run_command(measure: Callable[[argparse.Namespace, Console], Path], options: argparse.Namespace) -> int:
    """Run `measure`, which returns the path of its page, and return the exit code. Errors are printed in one line."""
    console = Console(stderr=True)
    try:
        page = measure(options, console)
    except DiptychError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. Rerun the same command to resume.", file=sys.stderr)
        return 130
    console.print(f"wrote {page}", highlight=False, soft_wrap=True)
    return 0


def count(text: str) -> int:
    """Parse a number from 1. Raises ValueError, which argparse reports with the option and the text."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def open_or_prepare(source: Path, folder: Path) -> Dataset:
    """Open a prepared dataset, or prepare another source into `folder`, again if the source has changed."""
    if (source / "dataset.json").is_file():
        return Dataset.open(source)
    same_source = (folder / "dataset.json").is_file() and read_meta(folder).source == source.resolve().name
    return prepare(source, folder, PrepareSettings(), force=same_source)[0]
