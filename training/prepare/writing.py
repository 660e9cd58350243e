"""Write a prepared dataset: check the tables, write them to a temporary folder, replace the dataset's folder by it."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from retrieval.errors import DatasetError
from retrieval.system.atomic_files import replace_folder
from training.data import checks
from training.data.dataset import SPLITS, Dataset, DatasetMeta, Split, SplitName, split_of
from training.data.exposures import EXPOSURES, check_exposures
from training.data.fingerprint import fingerprint
from training.pages import DATASET_PAGE

SKIPPED, RENAMED = "skipped-rows.txt", "renamed-labels.txt"
FILES = {"dataset.json", SKIPPED, RENAMED, DATASET_PAGE}
FILES |= {f"{name}.parquet" for name in ("labels", EXPOSURES, *SPLITS)}


def write_dataset(
    folder: Path | str, labels: Any, splits: Mapping[SplitName, Any], meta: DatasetMeta, *, exposures: Any = None,
    replace: bool = False, skipped: Sequence[str] = (), renames: Sequence[str] = (),
) -> Dataset:  # fmt: skip
    """Write a prepared dataset and open it. If it fails, `folder` is unchanged.

    labels: table of id, text and attributes; splits: a table per split with id, text, labels and, optionally, exclude,
    weights and days; a missing split is empty; exposures: table as in training/data/exposures.py, or None. The sizes
    and the fingerprint of `meta` are computed from the tables. skipped, renames: lines of skipped-rows.txt and
    renamed-labels.txt. replace: allow to replace a prepared dataset.
    Raises DatasetError for the first invalid row, and if `folder` exists and may not be replaced.
    """
    folder = Path(folder)
    refuse_to_overwrite(folder, replace)
    labels = checks.check_label_table(labels, "labels.parquet")
    checked: dict[SplitName, Split] = {
        name: _checked_split(splits.get(name), name, labels.num_rows, meta) for name in SPLITS
    }
    if exposures is not None:
        rows = {name: len(split) for name, split in checked.items()}
        exposures = check_exposures(exposures, f"{EXPOSURES}.parquet", labels.num_rows, rows)
    meta = meta.model_copy(
        update={
            "labels": labels.num_rows,
            "splits": {name: split.counts() for name, split in checked.items()},
            "fingerprint": fingerprint(labels, checked, exposures),
        }
    )
    tables = {"labels": labels} | {str(name): split.table() for name, split in checked.items()}
    tables |= {} if exposures is None else {EXPOSURES: exposures}
    texts = {"dataset.json": meta.model_dump_json(indent=2) + "\n"}
    texts |= {name: "\n".join(lines) + "\n" for name, lines in ((SKIPPED, skipped), (RENAMED, renames)) if lines}
    try:
        _publish(folder, tables, texts)
    except OSError as error:
        raise DatasetError(f"{folder} cannot be written: {error.strerror or error}. It is unchanged.") from error
    return Dataset.open(folder)


def refuse_to_overwrite(folder: Path, replace: bool) -> None:
    """Raise DatasetError unless `folder` does not exist, is empty, or is a prepared dataset that may be replaced."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir():
        raise DatasetError(f"{folder} is a file. Choose a folder to write the dataset to.")
    if not (folder / "dataset.json").is_file():
        raise DatasetError(
            f"{folder} exists and is not a prepared dataset, so it is not replaced. Choose another folder."
        )
    if not replace:
        raise DatasetError(f"{folder} contains another dataset. Choose another folder, or add --force to replace it.")
    others = sorted(path.name for path in folder.iterdir() if path.name not in FILES)
    if others:
        raise DatasetError(
            f"{folder} also contains {others[0]!r}, which would be deleted. Move it or choose another folder."
        )


def _checked_split(table: Any, name: SplitName, n_labels: int, meta: DatasetMeta) -> Split:
    file = f"{name}.parquet"
    if table is None:
        table = checks.SPLIT_SCHEMA.empty_table()
    if "exclude" not in table.column_names:
        table = table.append_column("exclude", pa.array([[]] * table.num_rows, pa.list_(pa.int32())))
    split = split_of(checks.check_split_table(table, file, n_labels), name, meta)
    if name == "train":
        checks.require_positives(split.labels, file)
    return split


def _publish(folder: Path, tables: Mapping[str, Any], texts: Mapping[str, str]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    try:
        _write_files(temporary, tables, texts)
        replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_files(folder: Path, tables: Mapping[str, Any], texts: Mapping[str, str]) -> None:
    for name, table in tables.items():
        with (folder / f"{name}.parquet").open("wb") as file:  # Arrow opens only paths that are UTF-8
            pq.write_table(table, file, compression="zstd")
    for name, text in texts.items():
        (folder / name).write_bytes(text.encode())
    folder.chmod(0o755)  # mkdtemp sets 0o700, which other accounts could not read
