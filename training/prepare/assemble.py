"""Split the rows of a source, remove excluded labels from the true labels, and leave out rare labels.

All that is left out is counted in the notes. Shapes: L labels, R rows.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from retrieval.tables.notes import Notes
from training.data.meta import SplitName
from training.data.ragged import Ragged
from training.prepare.reciprocal import reciprocal_pairs_of_validation
from training.prepare.source_data import TEST, TRAIN, UNSPLIT, VALIDATION, Positives, SourceData
from training.prepare.split_hash import below_share

CODES: Mapping[SplitName, int] = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
MAX_VALIDATION_ROWS = 2_000  # about; training evaluates at most as many, so more would be lost to training


@dataclass(frozen=True)
class Assembled:
    """The tables of a prepared dataset, and the number of input rows in them.

    `written` counts queries, or (query, label) pairs if the input had a row per pair; `listed` counts the labels that
    came from a label table; `exposures` is a table, or None.
    """

    labels: Any
    splits: dict[SplitName, Any]
    written: int
    listed: int
    exposures: Any


def assemble(
    data: SourceData, test: float, validation: float, min_label_count: int, notes: Notes, skipped: Counter[str]
) -> Assembled:
    """Split the rows, and leave out labels and rows without use in training; count these rows in `skipped`.

    test: share of the queries to cut if the source names no splits; validation: share of the training queries to cut if
    the source has no validation rows, limited to about MAX_VALIDATION_ROWS. Only its text decides the split of a query.
    """
    positives = data.positives
    excluded_V = positives.labels.overlap(data.exclude) & (not data.excluded_may_be_true)
    notes.add("excluded_labels_removed", int(np.count_nonzero(excluded_V)))
    positives = positives.keep(~excluded_V)
    split_R = cut(data.split_R, data.hash_R2[:, 0], UNSPLIT, test, TEST, TRAIN)
    keep_L = frequent_labels(data, positives.labels, split_R != TEST, min_label_count, notes)
    number_L = np.cumsum(keep_L, dtype=np.int32) - 1
    if data.from_pairs:
        skipped["below_min_label_count"] += int(np.count_nonzero(~keep_L[positives.labels.values]))
    positives = positives.keep(keep_L[positives.labels.values]).renumbered(number_L)
    exclude = Positives(data.exclude).keep(keep_L[data.exclude.values]).renumbered(number_L).labels
    split_R = _without_rows_without_label(data, positives.labels, split_R, notes, skipped)
    if not np.any(split_R == VALIDATION):
        share = min(validation, MAX_VALIDATION_ROWS / max(1, int(np.count_nonzero(split_R == TRAIN))))
        split_R = cut(split_R, data.hash_R2[:, 1], TRAIN, share, VALIDATION, TRAIN)
        label_texts = data.label_texts.filter(pa.array(keep_L))
        masks_R = [split_R == code for code in (TRAIN, VALIDATION, TEST)]
        reciprocal_V = reciprocal_pairs_of_validation(data.texts, label_texts, positives.labels, exclude, *masks_R)
        notes.add("reciprocal_pairs_removed", int(np.count_nonzero(reciprocal_V)))
        if reciprocal_V.any():
            exclude = exclude.concat_values(positives.labels.keep(reciprocal_V))
            positives = positives.keep(~reciprocal_V)
    _count_repeated_queries(data, split_R, notes)
    exposures = _exposures(data.exposures, split_R, test, keep_L, number_L, skipped)
    return _assembled(data, positives, exclude, split_R, keep_L, exposures)


def _assembled(
    data: SourceData, positives: Positives, exclude: Ragged, split_R: npt.NDArray[np.int8],
    keep_L: npt.NDArray[np.bool_], exposures: Any,
) -> Assembled:  # fmt: skip
    tables = {name: _table(data, positives, exclude, split_R == code) for name, code in CODES.items()}
    if data.from_pairs:
        written = sum(pc.sum(pc.list_value_length(table["labels"])).as_py() or 0 for table in tables.values())
    else:
        written = sum(table.num_rows for table in tables.values())
    columns = {"id": data.label_ids, "text": data.label_texts, **data.label_columns}
    label_table = pa.table({name: column.filter(pa.array(keep_L)) for name, column in columns.items()})
    return Assembled(label_table, tables, written, int(np.count_nonzero(keep_L[: data.listed])), exposures)


def _exposures(
    exposures: Any, split_R: npt.NDArray[np.int8], test: float, keep_L: npt.NDArray[np.bool_],
    number_L: npt.NDArray[np.int32], skipped: Counter[str],
) -> Any:  # fmt: skip
    """Return the table of exposures: with split names, rows of split files and final label numbers; None if empty."""
    if exposures is None:
        return None
    label_E = np.asarray(exposures["label"])
    kept_E = keep_L[label_E]
    skipped["exposure"] -= int(np.count_nonzero(~kept_E))
    skipped["below_min_label_count"] += int(np.count_nonzero(~kept_E))
    split_R = np.append(split_R, np.int8(UNSPLIT))  # so that row −1 exists
    row_E = np.asarray(pc.fill_null(exposures["row"], -1))
    split_E = np.asarray(exposures["split"]).astype(np.int8)
    split_E = cut(split_E, np.asarray(exposures["hash_1"]), UNSPLIT, test, TEST, TRAIN)
    split_E = np.where(row_E >= 0, split_R[row_E], split_E)
    row_in_split_R = np.zeros(len(split_R), np.int32)
    for code in CODES.values():
        row_in_split_R[split_R == code] = np.arange(np.count_nonzero(split_R == code))
    is_lost_E = split_E == UNSPLIT  # the query's row was left out
    split_E = np.where(is_lost_E, np.int8(TRAIN), split_E)
    rows = pa.array(row_in_split_R[row_E], mask=(row_E < 0) | is_lost_E)
    names = pa.array(list(CODES)).take(pa.array(split_E))
    columns = {"split": names, "query": exposures["query"], "row": rows, "label": pa.array(number_L[label_E])}
    names_of_others = ("impressions", "first_day", "last_day")
    others = {name: exposures[name] for name in exposures.column_names if name in names_of_others}
    table = pa.table(columns | others).filter(pa.array(kept_E))
    return table if table.num_rows else None


def _without_rows_without_label(
    data: SourceData, labels: Ragged, split_R: npt.NDArray[np.int8], notes: Notes, skipped: Counter[str]
) -> npt.NDArray[np.int8]:
    """Return the splits with training rows without label moved to UNSPLIT; count these rows."""
    unlabelled_R = (labels.lengths == 0) & (split_R == TRAIN)
    empty_R = unlabelled_R & (data.positives.labels.lengths == 0)
    if data.from_pairs:
        notes.add("queries_without_label_removed", int(np.count_nonzero(unlabelled_R)))
    else:
        skipped["no_label"] += int(np.count_nonzero(empty_R))
        skipped["no_label_left"] += int(np.count_nonzero(unlabelled_R & ~empty_R))
    return np.where(unlabelled_R, np.int8(UNSPLIT), split_R)


def cut(
    split_R: npt.NDArray[np.int8], hash_R: npt.NDArray[np.uint64], source: int, share: float, chosen: int, rest: int
) -> npt.NDArray[np.int8]:
    """Divide split `source`: about `share` of its query texts get the split `chosen`, the others `rest`."""
    split_R = split_R.copy()
    source_R = split_R == source
    split_R[source_R] = np.where(below_share(hash_R[source_R], share), chosen, rest)
    return split_R


def frequent_labels(
    data: SourceData, labels: Ragged, learn_R: npt.NDArray[np.bool_], min_count: int, notes: Notes
) -> npt.NDArray[np.bool_]:
    """Return L booleans: labels that are a positive of at least `min_count` rows of `learn_R`."""
    learned = labels.values[np.repeat(learn_R, labels.lengths)]
    count_L = np.bincount(learned, minlength=len(data.is_label_L))
    keep_L = data.is_label_L & (count_L >= min_count)
    rare_L = data.is_label_L & ~keep_L
    notes.add("rare_labels", int(np.count_nonzero(rare_L)))
    notes.add("positives_of_rare_labels", int(np.count_nonzero(rare_L[labels.values])))
    notes.add("excluded_texts_without_label", int(np.count_nonzero(~data.is_label_L[data.exclude.values])))
    return keep_L


def _count_repeated_queries(data: SourceData, split_R: npt.NDArray[np.int8], notes: Notes) -> None:
    hash_R = data.hash_R2[:, 0]
    learned = np.unique(hash_R[(split_R == TRAIN) | (split_R == VALIDATION)])
    tested = np.unique(hash_R[split_R == TEST])
    notes.add("test_queries_in_training", len(np.intersect1d(learned, tested, assume_unique=True)))
    notes.add("queries_read_alike", pc.count_distinct(data.texts).as_py() - len(np.unique(hash_R)))


def _table(data: SourceData, positives: Positives, exclude: Ragged, rows_R: npt.NDArray[np.bool_]) -> Any:
    # filter and not take: take joins a column's chunks, which overflows above 2 GB of text
    mask = pa.array(rows_R)
    columns = {"id": data.ids.filter(mask), "text": data.texts.filter(mask), **positives.arrow(rows_R)}
    return pa.table({**columns, "exclude": exclude.select(rows_R).to_arrow()})
