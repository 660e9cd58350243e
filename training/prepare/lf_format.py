"""The XMC repository's raw LF-* sets: a folder of trn, tst and lbl JSON lines and the two filter files.

Labels are told by their line in lbl.json; `target_ind` and the filter files hold those numbers, counted from 0.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from retrieval.errors import DatasetError
from retrieval.tables.json_lines import json_rows
from retrieval.tables.opening import text_lines
from retrieval.tables.values import BadRow, id_of, shown, text_of
from training.data.ragged import Ragged
from training.prepare.files import Meter
from training.prepare.intake import Raw, Rows, TextColumn
from training.prepare.row_counts import InputRows, Problems

Text = Literal["title", "title+content"]
PARTS = {"trn": 0, "tst": 2}
FILTERS = {"trn": "filter_labels_train.txt", "tst": "filter_labels_test.txt"}


def is_lf(folder: Path) -> bool:
    """Whether the folder looks like an LF-* set: it holds a trn.json or a lbl.json, compressed or not."""
    return any(find(folder, name) is not None for name in ("trn", "lbl"))


def find(folder: Path, name: str) -> Path | None:
    """The folder's file `name`.json, .json.gz or .json.xz."""
    return next(
        (path for end in (".json.gz", ".json", ".json.xz") if (path := folder / f"{name}{end}").is_file()), None
    )


def lf_files(folder: Path) -> dict[str, Path]:
    """The set's files by part; DatasetError when one of trn, tst and lbl is missing. The filters may be."""
    files = {name: find(folder, name) for name in ("lbl", "trn", "tst")}
    for name, path in files.items():
        if path is None:
            raise DatasetError(f"{folder} has no {name}.json.gz. An LF-* folder holds trn, tst and lbl.json.gz.")
    filters = {f"filter {name}": folder / file for name, file in FILTERS.items() if (folder / file).is_file()}
    return {name: path for name, path in files.items() if path is not None} | filters


@dataclass
class LabelLines:
    """lbl.json: the labels kept, and the number each of its lines got (−1: a bad row that was skipped)."""

    ids: TextColumn = field(default_factory=TextColumn)
    texts: TextColumn = field(default_factory=TextColumn)
    number_of_line: list[int] = field(default_factory=list)
    known: set[str] = field(default_factory=set)

    def add(self, record: dict[str, Any], text: Text, limit: int) -> None:
        """Add a label; BadRow when its uid is not its own or it has no text."""
        uid = id_of(record.get("uid"), "uid", limit)
        if uid in self.known:
            raise BadRow(f"uid {shown(uid)} stands in an earlier row too. Give each label its own uid.")
        words = record_text(record, text, limit)
        self.number_of_line[-1] = len(self.known)
        self.known.add(uid)
        self.ids.append(uid)
        self.texts.append(words)


def record_text(record: dict[str, Any], text: Text, limit: int) -> str:
    """The title, or title and content with a space between; BadRow when that is no text."""
    title = record.get("title")
    if text == "title":
        return text_of(title, "title", limit)
    content = record.get("content") or ""
    for name, value in (("title", title), ("content", content)):
        if not isinstance(value, str):
            raise BadRow(f"{name} is {shown(value)}, not text. Give it text or remove the row.")
    return text_of(f"{title} {content}", "title and content", limit)


def read_lf(
    files: dict[str, Path], text: Text, limit: int, input_rows: InputRows, label_rows: InputRows,
    report: Counter[str], meter: Meter,
) -> Raw:  # fmt: skip
    """Read an LF-* set. Bad rows are noted in the two inputs; targets that name a skipped label count in `report`."""
    labels = LabelLines()
    for where, record in label_rows.filled(json_rows(files["lbl"], meter)):
        labels.number_of_line.append(-1)
        label_rows.attempt(where, record, lambda record: labels.add(record, text, limit))
    number_of_line = np.array(labels.number_of_line, np.int64)
    rows, excludes = Rows(), []
    for part, split in PARTS.items():
        adder = _RowAdder(rows, split, text, limit, labels.number_of_line, report)
        for where, record in input_rows.filled(json_rows(files[part], meter)):
            adder.row_of_line.append(-1)
            input_rows.attempt(where, record, adder.add)
        path = files.get(f"filter {part}")
        if path is not None:
            row_of_line = np.array(adder.row_of_line)
            excludes.append(read_filter(path, row_of_line, number_of_line, input_rows.problems, meter))
    return _raw(labels, rows, excludes)


class _RowAdder:
    """Add the rows of one file; `row_of_line` has the row number of each line, −1 for a bad row."""

    def __init__(
        self, rows: Rows, split: int, text: Text, limit: int, number_of_line: list[int], report: Counter[str]
    ) -> None:
        self._rows, self._split, self._text, self._limit = rows, split, text, limit
        self._number_of_line, self._report = number_of_line, report
        self.row_of_line: list[int] = []
        rows.known_ids.clear()  # uids are unique within a file; the same product may stand in both

    def add(self, record: dict[str, Any]) -> None:
        """Add the row of the last line. Raises BadRow."""
        targets = targets_of(record, self._number_of_line, self._report)
        uid, text = id_of(record.get("uid"), "uid", self._limit), record_text(record, self._text, self._limit)
        self._rows.append(self._split, uid, text, targets)
        self.row_of_line[-1] = len(self._rows) - 1


def targets_of(record: dict[str, Any], number_of_line: list[int], report: Counter[str]) -> list[int]:
    """The row's label numbers; those of relevance 0 and those of skipped labels are counted in `report`."""
    targets, relevance = record.get("target_ind"), record.get("target_rel")
    if not isinstance(targets, list) or not {*map(type, targets)} <= {int}:
        raise BadRow(f"target_ind is {shown(targets)}, not a list of label lines. Give it whole numbers.")
    if relevance is None:
        relevance = [1.0] * len(targets)
    if not isinstance(relevance, list) or len(relevance) != len(targets):
        raise BadRow(
            f"target_rel is {shown(relevance)}, not one number for each of {len(targets)} targets. Match them."
        )
    if targets and not 0 <= min(targets) <= max(targets) < len(number_of_line):
        outside = next(target for target in targets if not 0 <= target < len(number_of_line))
        raise BadRow(
            f"target_ind names label {outside}, but lbl.json has lines 0 to {len(number_of_line) - 1}. Remove it."
        )
    positive = [target for target, weight in zip(targets, relevance, strict=True) if weight]
    numbers = [number_of_line[target] for target in positive]
    kept = [number for number in numbers if number >= 0]
    report["targets of relevance 0"] += len(targets) - len(positive)
    report["targets that name a skipped label"] += len(numbers) - len(kept)
    return kept


def read_filter(path: Path, row_of_line: Any, number_of_line: Any, problems: Problems, meter: Meter) -> tuple[Any, Any]:
    """Two arrays, row and label, of the pairs to exclude; those of skipped rows or labels are gone with them."""
    pairs: list[tuple[int, int]] = []
    for number, line in text_lines(path, meter):
        try:
            if line:
                pairs.append(filter_pair(line, len(row_of_line), len(number_of_line)))
        except BadRow as bad:
            problems.note(f"{path.name} line {number}", bad)
    pairs_P2 = np.array(pairs, np.int64).reshape(-1, 2)
    row_P, label_P = row_of_line[pairs_P2[:, 0]], number_of_line[pairs_P2[:, 1]]
    kept = (row_P >= 0) & (label_P >= 0)
    return row_P[kept], label_P[kept]


def filter_pair(line: str, n_rows: int, n_labels: int) -> tuple[int, int]:
    """Row and label of one filter line; BadRow when it is no pair of numbers in range."""
    parts = line.split()
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() and len(part) < 19 for part in parts):
        raise BadRow(f"{shown(line)} is no pair of row and label. Write two whole numbers.")
    row, label = int(parts[0]), int(parts[1])
    if row >= n_rows or label >= n_labels:
        raise BadRow(
            f"row {row}, label {label} is outside rows 0–{n_rows - 1}, labels 0–{n_labels - 1}. Remove the line."
        )
    return row, label


def _raw(labels: LabelLines, rows: Rows, excludes: list[tuple[Any, Any]]) -> Raw:
    n_labels = len(labels.known)
    pairs = [np.unique(row * max(n_labels, 1) + label) for row, label in excludes]
    keys = np.concatenate(pairs) if pairs else np.empty(0, np.int64)
    row_P, label_P = np.divmod(np.sort(keys), max(n_labels, 1))
    return Raw(
        label_ids=labels.ids.finish(),
        label_texts=labels.texts.finish(),
        attributes={},
        is_label_L=np.ones(n_labels, np.bool_),
        ids=rows.ids.finish(),
        texts=rows.texts.finish(),
        split_R=np.array(rows.split, np.int8),
        hash_R2=np.array(rows.hashes, np.uint64).reshape(-1, 2),
        spelling_R=np.array(rows.spellings, np.int64),
        labels=rows.labels.finish(),
        listed=n_labels,
        exclude=Ragged.from_lengths(label_P.astype(np.int32), np.bincount(row_P, minlength=len(rows))),
    )
