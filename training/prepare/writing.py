"""Writing a prepared dataset: into a folder beside its place, checked, made durable, then renamed."""

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from retrieval.errors import DatasetError
from training.data import checks
from training.data.dataset import SPLITS, Dataset, DatasetMeta, Split, SplitName
from training.data.fingerprint import fingerprint

SKIPPED = "skipped-rows.txt"
FILES = {"dataset.json", "labels.parquet", SKIPPED, *(f"{name}.parquet" for name in SPLITS)}


def write_dataset(
    folder: Path | str,
    labels: Any,
    splits: Mapping[SplitName, Any],
    meta: DatasetMeta,
    *,
    replace: bool = False,
    skipped: Sequence[str] = (),
) -> Dataset:
    """Write a prepared dataset and open it; on any failure what stood there before still stands.

    labels: table of id, text, attributes; splits: one table a split (id, text, labels, and exclude unless nothing is
    excluded; a split left out is empty). `meta` gives everything but the counts and the fingerprint, which are taken
    from the data. `skipped` are sentences for skipped-rows.txt, one a line. `replace` allows an earlier prepared
    dataset to be replaced.
    Raises DatasetError for the first bad row, and when `folder` exists and may not be replaced.
    """
    folder = Path(folder)
    refuse_to_overwrite(folder, replace)
    labels = checks.label_table(labels, "labels.parquet")
    checked: dict[SplitName, Split] = {name: _checked_split(splits.get(name), name, labels.num_rows) for name in SPLITS}
    meta = meta.model_copy(
        update={
            "labels": labels.num_rows,
            "splits": {name: split.counts() for name, split in checked.items()},
            "fingerprint": fingerprint(labels, checked),
        }
    )
    tables = {"labels": labels} | {str(name): split.table() for name, split in checked.items()}
    texts = {"dataset.json": meta.model_dump_json(indent=2) + "\n"}
    if skipped:
        texts[SKIPPED] = "\n".join(skipped) + "\n"
    try:
        _publish(folder, tables, texts)
    except OSError as error:
        raise DatasetError(f"{folder} cannot be written: {error.strerror or error}. Nothing was changed.") from error
    return Dataset.open(folder)


def refuse_to_overwrite(folder: Path, replace: bool) -> None:
    """DatasetError unless `folder` is free, empty, or a prepared dataset that may be replaced."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir():
        raise DatasetError(f"{folder} is a file. Choose a folder to write the dataset to.")
    if not (folder / "dataset.json").is_file():
        raise DatasetError(
            f"{folder} exists and is not a prepared dataset, so it is left alone. Choose another folder."
        )
    if not replace:
        raise DatasetError(f"{folder} holds another dataset. Choose another folder, or add --force to replace it.")
    others = sorted(path.name for path in folder.iterdir() if path.name not in FILES)
    if others:
        raise DatasetError(f"{folder} also holds {others[0]!r}, which would be lost. Move it or choose another folder.")


def _checked_split(table: Any, name: SplitName, n_labels: int) -> Split:
    file = f"{name}.parquet"
    if table is None:
        table = checks.SPLIT_SCHEMA.empty_table()
    if "exclude" not in table.column_names:
        table = table.append_column("exclude", pa.array([[]] * table.num_rows, pa.list_(pa.int32())))
    split = Split.from_table(checks.split_table(table, file, n_labels))
    if name == "train":
        checks.every_row_has_a_positive(split.labels, file)
    return split


def _publish(folder: Path, tables: Mapping[str, Any], texts: Mapping[str, str]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    try:
        _write_files(aside, tables, texts)
        _move_into_place(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_files(folder: Path, tables: Mapping[str, Any], texts: Mapping[str, str]) -> None:
    for name, table in tables.items():
        with (folder / f"{name}.parquet").open("wb") as file:
            pq.write_table(table, file, compression="zstd")
            _flush(file)
    for name, text in texts.items():
        with (folder / name).open("wb") as file:
            file.write(text.encode())
            _flush(file)
    folder.chmod(0o755)  # mkdtemp's 0o700 would keep a service account from reading it


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _move_into_place(aside: Path, folder: Path) -> None:
    if not folder.exists():
        os.rename(aside, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".replaced", dir=folder.parent))
    os.rename(folder, old)
    try:
        os.rename(aside, folder)
    except OSError:
        os.rename(old, folder)
        raise
    shutil.rmtree(old)
