"""What every benchmark that trains shares: its numbers, its dataset, how it ends."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from retrieval.errors import DiptychError
from training.data.dataset import Dataset, read_meta
from training.prepare.inputs import PrepareSettings
from training.prepare.prepare import prepare


def ended(measure: Callable[[argparse.Namespace, Console], Path], options: argparse.Namespace) -> int:
    """Run `measure`, which returns the page it wrote: the exit code. An error is one sentence, Ctrl-C goes on later."""
    console = Console(stderr=True)
    try:
        written = measure(options, console)
    except DiptychError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return 130
    console.print(f"wrote {written} and its plots", highlight=False, soft_wrap=True)
    return 0


def count(text: str) -> int:
    """A number from 1; ValueError, which argparse tells with the option and the text."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def opened(source: Path, folder: Path) -> Dataset:
    """A prepared dataset as it is; anything else prepared into `folder`, again when its source has changed."""
    if (source / "dataset.json").is_file():
        return Dataset.open(source)
    same_source = (folder / "dataset.json").is_file() and read_meta(folder).source == source.resolve().name
    return prepare(source, folder, PrepareSettings(), force=same_source)[0]
