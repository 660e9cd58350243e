"""From what was read to what is written: splits cut, excluded labels out of the truth, rare labels left out.

Everything left out is counted in the report. Shapes: L labels, R rows.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from training.data.dataset import SplitName
from training.data.ragged import Ragged
from training.prepare import reciprocal
from training.prepare.intake import UNSPLIT, Raw

TRAIN, VALIDATION, TEST = range(3)
CODES: Mapping[SplitName, int] = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
MOST_VALIDATION = 2_000  # rows, about: training looks at no more of them, so any beyond would only be lost to it
_HASHES = 2.0**64


@dataclass(frozen=True)
class Assembled:
    """The tables of a prepared dataset, and the number of input rows in them.

    `written` counts queries, or (query, label) pairs if the input had a row per pair; `listed` counts the labels that
    came from a label table.
    """

    labels: Any
    splits: dict[SplitName, Any]
    written: int
    listed: int


def assemble(
    raw: Raw, test: float, validation: float, min_label_count: int, report: Counter[str], skipped: Counter[str]
) -> Assembled:
    """Split the rows and leave out labels and rows that are not learned; count the rows left out in `skipped`.

    test: share of the queries cut off where the source names no splits; validation: share of the training queries cut
    off where the source has no validation rows, about MOST_VALIDATION at most. A query's text alone decides its side.
    """
    excluded = raw.labels.overlap(raw.exclude)
    report["excluded labels taken out of their row's labels"] += int(np.count_nonzero(excluded))
    labels = raw.labels.keep(~excluded)
    split_R = cut(raw.split_R, raw.hash_R2[:, 0], UNSPLIT, test, TEST, TRAIN)
    keep_L = frequent(raw, labels, split_R != TEST, min_label_count, report)
    number_L = np.cumsum(keep_L, dtype=np.int32) - 1
    if raw.from_pairs:
        skipped["below_min_label_count"] += int(np.count_nonzero(~keep_L[labels.values]))
    labels, exclude = (_renumbered(lists, keep_L, number_L) for lists in (labels, raw.exclude))
    split_R = _without_bare_rows(raw, labels, split_R, report, skipped)
    if not np.any(split_R == VALIDATION):
        share = min(validation, MOST_VALIDATION / max(1, int(np.count_nonzero(split_R == TRAIN))))
        split_R = cut(split_R, raw.hash_R2[:, 1], TRAIN, share, VALIDATION, TRAIN)
        labels, exclude = without_reciprocal_pairs(raw, labels, exclude, split_R, keep_L, report)
    _count_repeated_queries(raw, split_R, report)
    tables = {name: _table(raw, labels, exclude, split_R == code) for name, code in CODES.items()}
    written = [pc.sum(pc.list_value_length(table["labels"])).as_py() or 0 for table in tables.values()]
    rows = [table.num_rows for table in tables.values()]
    kept = pa.array(keep_L)
    columns = {"id": raw.label_ids, "text": raw.label_texts, **raw.attributes}
    label_table = pa.table({name: column.filter(kept) for name, column in columns.items()})
    listed = int(np.count_nonzero(keep_L[: raw.listed]))
    return Assembled(label_table, tables, sum(written if raw.from_pairs else rows), listed)


def _without_bare_rows(
    raw: Raw, labels: Ragged, split_R: npt.NDArray[np.int8], report: Counter[str], skipped: Counter[str]
) -> npt.NDArray[np.int8]:
    """Return the splits with training rows that have no label moved to UNSPLIT, and count them."""
    bare_R = (labels.lengths == 0) & (split_R == TRAIN)
    empty_R = bare_R & (raw.labels.lengths == 0)
    if raw.from_pairs:
        report["queries left out of training because no label is left"] += int(np.count_nonzero(bare_R))
    else:
        skipped["no_label"] += int(np.count_nonzero(empty_R))
        skipped["no_label_left"] += int(np.count_nonzero(bare_R & ~empty_R))
    return np.where(bare_R, np.int8(UNSPLIT), split_R)


def cut(
    split_R: npt.NDArray[np.int8], hash_R: npt.NDArray[np.uint64], of: int, share: float, chosen: int, rest: int
) -> npt.NDArray[np.int8]:
    """Give the rows of split `of` a new one: `chosen` for about `share` of the query texts, `rest` for the others."""
    split_R = split_R.copy()
    among = split_R == of
    split_R[among] = np.where(hash_R[among].astype(np.float64) < share * _HASHES, chosen, rest)
    return split_R


def without_reciprocal_pairs(
    raw: Raw,
    labels: Ragged,
    exclude: Ragged,
    split_R: npt.NDArray[np.int8],
    keep_L: npt.NDArray[np.bool_],
    report: Counter[str],
) -> tuple[Ragged, Ragged]:
    """Labels and excludes with the validation rows' reciprocal pairs left out, if the test rows leave out theirs."""
    test_R, validation_R = split_R == TEST, split_R == VALIDATION
    excluded_N = exclude.select(test_R)
    if not len(excluded_N.values):
        return labels, exclude
    own_R = reciprocal.label_of_text(raw.texts, raw.label_texts.filter(pa.array(keep_L)))
    tested = reciprocal.reversed_pairs(own_R, labels, (split_R == TRAIN) | validation_R).select(test_R)
    if not reciprocal.left_out(tested, labels.select(test_R), excluded_N):
        return labels, exclude
    known = reciprocal.reversed_pairs(own_R, labels, split_R == TRAIN)
    gone = labels.overlap(known) & validation_R[labels.row_of_value]
    report["reciprocal pairs left out of the validation rows, as the test rows leave out theirs"] += int(gone.sum())
    return labels.keep(~gone), exclude.joined(labels.keep(gone))


def frequent(
    raw: Raw, labels: Ragged, learn_R: npt.NDArray[np.bool_], minimum: int, report: Counter[str]
) -> npt.NDArray[np.bool_]:
    """L booleans: texts that are labels at all and positives of at least `minimum` rows outside the test split."""
    learned = labels.values[np.repeat(learn_R, labels.lengths)]
    count_L = np.bincount(learned, minlength=len(raw.is_label_L))
    keep_L = raw.is_label_L & (count_L >= minimum)
    gone = raw.is_label_L & ~keep_L
    report[f"labels below --min-label-count {minimum}"] += int(np.count_nonzero(gone))
    report["positives lost with those labels"] += int(np.count_nonzero(gone[labels.values]))
    stray = ~raw.is_label_L
    report["excluded labels that are no label of any row"] += int(np.count_nonzero(stray[raw.exclude.values]))
    return keep_L


def _renumbered(lists: Ragged, keep_L: npt.NDArray[np.bool_], number_L: npt.NDArray[np.int32]) -> Ragged:
    kept = lists.keep(keep_L[lists.values])
    return Ragged(number_L[kept.values], kept.offsets)


def _count_repeated_queries(raw: Raw, split_R: npt.NDArray[np.int8], report: Counter[str]) -> None:
    hash_R = raw.hash_R2[:, 0]
    learned = np.unique(hash_R[(split_R == TRAIN) | (split_R == VALIDATION)])
    tested = np.unique(hash_R[split_R == TEST])
    repeated = len(np.intersect1d(learned, tested, assume_unique=True))
    report["test queries whose text is a training query too"] += repeated
    spellings = len(np.unique(raw.spelling_R)) - len(np.unique(hash_R))
    report["queries that the encoder reads like another one (case, accents)"] += spellings


def _table(raw: Raw, labels: Ragged, exclude: Ragged, rows_R: npt.NDArray[np.bool_]) -> Any:
    # filter and not take: take joins a column's chunks, which overflows above 2 GB of text
    mask = pa.array(rows_R)
    return pa.table(
        {
            "id": raw.ids.filter(mask),
            "text": raw.texts.filter(mask),
            "labels": labels.select(rows_R).to_arrow(),
            "exclude": exclude.select(rows_R).to_arrow(),
        }
    )
