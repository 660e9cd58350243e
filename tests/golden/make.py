"""Make a golden bundle, once per format version: `python -m tests.golden.make tests/golden/v6`.

Trains a checkpoint of 300 labels, 13 of which share a text, and exports it, in seconds. With `cascade` as second
argument, the checkpoint is a cascade (version 5). The result is committed and never made again: a release that cannot
open it, or answers differently, would break existing bundles.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from export.build import export
from export.job import ExportSettings
from retrieval.open import open_store
from tests.support.listener import RecordingCallback
from tests.support.training.cascades import make_cascade_checkpoint
from tests.support.training.checkpoints import SETTINGS, write_words
from training.recipe.loading import load_recipe
from training.run import train

SETTINGS_OF_EXPORT = ExportSettings(m=8, vectors="int8", index="hnsw")
SMALL = ["encoder.dim=12", "encoder.pair_rows=64", "memory.max_queries=100"]  # a fiftieth of the bytes of the defaults


def main(target: Path, kind: str = "vectors") -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        checkpoint = make_cascade_checkpoint(folder) if kind == "cascade" else make_vectors_checkpoint(folder)
        built = export(checkpoint, open_store(folder / "store"), name="golden", settings=SETTINGS_OF_EXPORT)
        shutil.copytree(built.path, target)
    print(f"{target}: {sum(item.stat().st_size for item in target.iterdir()):,} bytes, {built.golden}")


def make_vectors_checkpoint(folder: Path) -> Path:
    recipe = load_recipe("default", [*SETTINGS, *SMALL])
    train(write_words(folder / "dataset", shared=12), recipe, folder / "run", RecordingCallback())
    return folder / "run"


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
