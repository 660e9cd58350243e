"""Read a raw LF-* set of the XMC repository: a folder with trn, tst and lbl in JSON Lines, and two filter files.

`target_ind` and the filter files name labels by their line in lbl.json, counted from 0.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from retrieval.errors import DatasetError
from retrieval.tables.json_lines import json_rows
from retrieval.tables.lines import text_lines
from retrieval.tables.notes import Notes
from retrieval.tables.opening import ReadingProgress
from retrieval.tables.values import BadRow, Record, parse_id, parse_text, preview
from training.data.ragged import Ragged
from training.prepare.input_rows import BadRowLog, InputRows
from training.prepare.source_data import QueryRows, SourceData, TextColumn

TextFields = Literal["title", "title+content"]
SPLIT_OF_PART = {"trn": 0, "tst": 2}
FILTERS = {"trn": "filter_labels_train.txt", "tst": "filter_labels_test.txt"}


def is_lf(folder: Path) -> bool:
    """Return whether the folder contains a trn.json or a lbl.json, compressed or not."""
    return any(find_part(folder, name) is not None for name in ("trn", "lbl"))


def find_part(folder: Path, name: str) -> Path | None:
    """Return the folder's file `name`.json, .json.gz or .json.xz, if there is one."""
    return next(
        (path for end in (".json.gz", ".json", ".json.xz") if (path := folder / f"{name}{end}").is_file()), None
    )


def lf_files(folder: Path) -> dict[str, Path]:
    """Return the set's files by part. Raises DatasetError if trn, tst or lbl is missing; the filters are optional."""
    files = {name: find_part(folder, name) for name in ("lbl", "trn", "tst")}
    for name, path in files.items():
        if path is None:
            raise DatasetError(f"{folder} has no {name}.json.gz. An LF-* folder needs trn, tst and lbl.json.gz.")
    filters = {f"filter {name}": folder / file for name, file in FILTERS.items() if (folder / file).is_file()}
    return {name: path for name, path in files.items() if path is not None} | filters


@dataclass
class LabelLines:
    """The labels of lbl.json, and the label number of each line, −1 for a bad row."""

    ids: TextColumn = field(default_factory=TextColumn)
    texts: TextColumn = field(default_factory=TextColumn)
    number_of_line: list[int] = field(default_factory=list)
    known_ids: set[str] = field(default_factory=set)

    def add(self, record: Record, fields: TextFields, max_characters: int) -> None:
        """Add the label of the last line. Raises BadRow for a repeated uid or a missing text."""
        uid = parse_id(record.get("uid"), "uid", max_characters)
        if uid in self.known_ids:
            raise BadRow(f"uid {preview(uid)} is in an earlier row too. Give each label its own uid.")
        text = record_text(record, fields, max_characters)
        self.number_of_line[-1] = len(self.known_ids)
        self.known_ids.add(uid)
        self.ids.append(uid)
        self.texts.append(text)


def record_text(record: Record, fields: TextFields, max_characters: int) -> str:
    """Return the title, or title and content with a space between. Raises BadRow if it is not text."""
    title = record.get("title")
    if fields == "title":
        return parse_text(title, "title", max_characters)
    content = record.get("content") or ""
    for name, value in (("title", title), ("content", content)):
        if not isinstance(value, str):
            raise BadRow(f"{name} is {preview(value)}, not text. Write text or remove the row.")
    return parse_text(f"{title} {content}", "title and content", max_characters)


def read_lf(
    files: dict[str, Path], fields: TextFields, max_characters: int, input_rows: InputRows, label_rows: InputRows,
    notes: Notes, progress: ReadingProgress,
) -> SourceData:  # fmt: skip
    """Read an LF-* set. Bad rows are logged in the two inputs; targets of skipped labels are counted in `notes`."""
    labels = LabelLines()
    for where, record in label_rows.filled(json_rows(files["lbl"], progress)):
        labels.number_of_line.append(-1)
        label_rows.attempt(where, record, lambda record: labels.add(record, fields, max_characters))
    number_of_line = np.array(labels.number_of_line, np.int64)
    rows, excludes = QueryRows(), []
    for part, split in SPLIT_OF_PART.items():
        adder = _RowAdder(rows, split, fields, max_characters, labels.number_of_line, notes)
        for where, record in input_rows.filled(json_rows(files[part], progress)):
            adder.row_of_line.append(-1)
            input_rows.attempt(where, record, adder.add)
        path = files.get(f"filter {part}")
        if path is not None:
            row_of_line = np.array(adder.row_of_line)
            excludes.append(read_filter(path, row_of_line, number_of_line, input_rows.bad_rows, progress))
    return _build_source_data(labels, rows, excludes)


class _RowAdder:
    """Adds the rows of one file. `row_of_line` has the row number of each line, −1 for a bad row."""

    def __init__(
        self, rows: QueryRows, split: int, fields: TextFields, max_characters: int, number_of_line: list[int],
        notes: Notes,
    ) -> None:  # fmt: skip
        self._rows, self._split, self._fields, self._max_characters = rows, split, fields, max_characters
        self._number_of_line, self._notes = number_of_line, notes
        self.row_of_line: list[int] = []
        rows.known_ids.clear()  # uids are unique within a file; one product may be in both files

    def add(self, record: Record) -> None:
        """Add the row of the last line. Raises BadRow."""
        targets = parse_targets(record, self._number_of_line, self._notes)
        uid = parse_id(record.get("uid"), "uid", self._max_characters)
        text = record_text(record, self._fields, self._max_characters)
        self._rows.append(self._split, uid, text, targets)
        self.row_of_line[-1] = len(self._rows) - 1


def parse_targets(record: Record, number_of_line: list[int], notes: Notes) -> list[int]:
    """Return the row's label numbers. Targets of relevance 0 and of skipped labels are counted in `notes`."""
    targets, relevance = record.get("target_ind"), record.get("target_rel")
    if not isinstance(targets, list) or not {*map(type, targets)} <= {int}:
        raise BadRow(f"target_ind is {preview(targets)}, not a list of label lines. Write integers.")
    if relevance is None:
        relevance = [1.0] * len(targets)
    if not isinstance(relevance, list) or len(relevance) != len(targets):
        raise BadRow(
            f"target_rel is {preview(relevance)}, not one number for each of {len(targets)} targets. Write as many."
        )
    if targets and not 0 <= min(targets) <= max(targets) < len(number_of_line):
        outside = next(target for target in targets if not 0 <= target < len(number_of_line))
        raise BadRow(
            f"target_ind names label {outside}, but lbl.json has lines 0 to {len(number_of_line) - 1}. Remove it."
        )
    positive = [target for target, weight in zip(targets, relevance, strict=True) if weight]
    numbers = [number_of_line[target] for target in positive]
    known = [number for number in numbers if number >= 0]
    notes.add("targets_of_relevance_0", len(targets) - len(positive))
    notes.add("targets_of_skipped_labels", len(numbers) - len(known))
    return known


def read_filter(
    path: Path, row_of_line: Any, number_of_line: Any, bad_rows: BadRowLog, progress: ReadingProgress
) -> tuple[Any, Any]:
    """Return rows and labels of the pairs to exclude, as two arrays, without those of skipped rows and labels."""
    pairs: list[tuple[int, int]] = []
    for number, line in text_lines(path, progress):
        try:
            if line:
                pairs.append(parse_filter_pair(line, len(row_of_line), len(number_of_line)))
        except BadRow as bad:
            bad_rows.add(f"{path.name} line {number}", bad)
    pairs_P2 = np.array(pairs, np.int64).reshape(-1, 2)
    row_P, label_P = row_of_line[pairs_P2[:, 0]], number_of_line[pairs_P2[:, 1]]
    known_P = (row_P >= 0) & (label_P >= 0)
    return row_P[known_P], label_P[known_P]


def parse_filter_pair(line: str, n_rows: int, n_labels: int) -> tuple[int, int]:
    """Return row and label of one filter line. Raises BadRow if it is not a pair of numbers in range."""
    parts = line.split()
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() and len(part) < 19 for part in parts):
        raise BadRow(f"{preview(line)} is not a pair of row and label. Write two integers.")
    row, label = int(parts[0]), int(parts[1])
    if row >= n_rows or label >= n_labels:
        raise BadRow(
            f"row {row}, label {label} is outside rows 0–{n_rows - 1}, labels 0–{n_labels - 1}. Remove the line."
        )
    return row, label


def _build_source_data(labels: LabelLines, rows: QueryRows, excludes: list[tuple[Any, Any]]) -> SourceData:
    n_labels = len(labels.known_ids)
    pairs = [np.unique(row * max(n_labels, 1) + label) for row, label in excludes]
    keys = np.concatenate(pairs) if pairs else np.empty(0, np.int64)
    row_P, label_P = np.divmod(np.sort(keys), max(n_labels, 1))
    return SourceData(
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
