"""Read a raw LF-* set of the XMC repository: a folder with trn, tst and lbl in JSON Lines, and two filter files.

`target_ind` and the filter files name labels by their line in lbl.json, counted from 0.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.errors import DatasetError
from retrieval.tables.json_lines import json_rows
from retrieval.tables.lines import text_lines
from retrieval.tables.notes import Notes
from retrieval.tables.opening import ReadingProgress
from retrieval.tables.values import BadRow, Record, parse_id, parse_text, preview
from training.data.ragged import Ragged
from training.prepare.bad_rows import BadRows
from training.prepare.settings import TextFields
from training.prepare.source_data import TEST, TRAIN, Positives, SourceData, text_column
from training.prepare.split_hash import text_hashes

SPLIT_OF_PART = {"trn": TRAIN, "tst": TEST}
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
class LfFile:
    """The accepted rows of trn, tst or lbl: `number_of_line` is the row of each line, −1 for a line that is skipped."""

    ids: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    targets: list[list[int]] = field(default_factory=list)
    number_of_line: list[int] = field(default_factory=list)
    read: int = 0
    blank: int = 0
    bad: int = 0


class LfReader:
    """Reads the files of an LF-* set."""

    def __init__(
        self, fields: TextFields, max_characters: int, bad_rows: BadRows, notes: Notes, progress: ReadingProgress
    ) -> None:
        self._fields, self._max_characters = fields, max_characters
        self._bad_rows, self._notes, self._progress = bad_rows, notes, progress

    def read(self, files: dict[str, Path]) -> tuple[SourceData, LfFile, list[LfFile]]:
        """Return the source data, and the rows of the labels and of the queries."""
        labels = self._read_file(files["lbl"], None)
        parts = {name: self._read_file(files[name], labels.number_of_line) for name in SPLIT_OF_PART}
        excludes = []
        for name, part in parts.items():
            path = files.get(f"filter {name}")
            first = 0 if name == "trn" else len(parts["trn"].ids)
            if path is not None:
                pairs = read_filter(path, part.number_of_line, labels.number_of_line, self._bad_rows, self._progress)
                excludes.append((pairs[0] + first, pairs[1]))
        return _build_source_data(labels, parts, excludes), labels, list(parts.values())

    def _read_file(self, path: Path, label_lines: list[int] | None) -> LfFile:
        rows, known_ids = LfFile(), set[str]()
        for where, record in json_rows(path, self._progress):
            rows.read += 1
            if record is None:
                rows.blank += 1
                continue
            rows.number_of_line.append(-1)
            try:
                if isinstance(record, BadRow):
                    raise record
                self._add(rows, record, known_ids, label_lines)
            except BadRow as bad:
                rows.bad += 1
                self._bad_rows.add([f"{where}: {bad}"], 1)
        return rows

    def _add(self, rows: LfFile, record: Record, known_ids: set[str], label_lines: list[int] | None) -> None:
        """Add the row of the last line. Raises BadRow."""
        targets = [] if label_lines is None else parse_targets(record, label_lines, self._notes)
        uid = parse_id(record.get("uid"), "uid", self._max_characters)
        text = record_text(record, self._fields, self._max_characters)
        if uid in known_ids:
            raise BadRow(f"uid {preview(uid)} is in an earlier row too. Give each row its own uid.")
        known_ids.add(uid)
        rows.number_of_line[-1] = len(rows.ids)
        rows.ids.append(uid)
        rows.texts.append(text)
        rows.targets.append(targets)


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
    path: Path, row_of_line: list[int], label_of_line: list[int], bad_rows: BadRows, progress: ReadingProgress
) -> tuple[Any, Any]:
    """Return rows and labels of the pairs to exclude, as two arrays, without those of skipped rows and labels."""
    pairs: list[tuple[int, int]] = []
    for number, line in text_lines(path, progress):
        try:
            if line:
                pairs.append(parse_filter_pair(line, len(row_of_line), len(label_of_line)))
        except BadRow as bad:
            bad_rows.add([f"{path.name} line {number}: {bad}"], 1)
    pairs_P2 = np.array(pairs, np.int64).reshape(-1, 2)
    row_P, label_P = np.array(row_of_line)[pairs_P2[:, 0]], np.array(label_of_line)[pairs_P2[:, 1]]
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


def _build_source_data(labels: LfFile, parts: dict[str, LfFile], excludes: list[tuple[Any, Any]]) -> SourceData:
    n_labels, files = len(labels.ids), list(parts.values())
    texts = text_column([text for file in files for text in file.texts])
    pairs = [np.unique(row * max(n_labels, 1) + label) for row, label in excludes]
    keys = np.concatenate(pairs) if pairs else np.empty(0, np.int64)
    row_P, label_P = np.divmod(np.sort(keys), max(n_labels, 1))
    targets = Ragged.from_lists(targets for file in files for targets in file.targets)
    return SourceData(
        label_ids=text_column(labels.ids),
        label_texts=text_column(labels.texts),
        label_columns={},
        is_label_L=np.ones(n_labels, np.bool_),
        ids=text_column([identity for file in files for identity in file.ids]),
        texts=texts,
        split_R=np.repeat(np.array(list(SPLIT_OF_PART.values()), np.int8), [len(file.ids) for file in files]),
        hash_R2=text_hashes(texts),
        positives=Positives(targets.without_repeats()),
        exclude=Ragged.from_lengths(label_P.astype(np.int32), np.bincount(row_P, minlength=len(texts))),
        listed=n_labels,
        excluded_may_be_true=True,  # the repository's evaluation filters predictions only
    )
