"""Compute sizes and distributions of a prepared dataset, for the summary and the page of `diptych prepare`.

Shapes: L labels, R queries, T test queries, V true labels of all queries of a split.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retrieval.query_text import query_identities
from training.data.dataset import SPLITS, Dataset, Split, SplitName
from training.data.exposures import EXPOSURES
from training.data.meta import SplitCounts

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]

ROWS_PER_STEP = 262_144
MOST_WORDS = 10  # of a query; longer ones are counted together
FREQUENCIES = ((0, 0), (1, 1), (2, 5), (6, 20), (21, 100), (101, None))  # groups of labels by training positives


@dataclass(frozen=True)
class SplitStatistics:
    """Sizes of a split; `weight` is the sum of the weights, and days are ISO dates. None: the dataset has none."""

    counts: SplitCounts
    excluded: int
    weight: float | None
    first_day: str | None
    last_day: str | None


@dataclass(frozen=True)
class Share:
    """Share of the test pairs with a property: each pair counted once, and by weight (None without weights)."""

    pairs: float
    weight: float | None

    @property
    def headline(self) -> float:
        """Return the share by weight, or of the pairs if there are no weights."""
        return self.pairs if self.weight is None else self.weight


@dataclass(frozen=True)
class KnownShares:
    """Shares of the test pairs whose query is in train, whose label has a training positive, and both."""

    queries: Share
    labels: Share
    both: Share


@dataclass(frozen=True)
class LabelGroup:
    """Labels with `low` to `high` (None: or more) training positives: their number, and their positives together."""

    low: int
    high: int | None
    labels: int
    positives: int

    @property
    def name(self) -> str:
        """Return the range: `0`, `2 to 5`, `101 or more`."""
        if self.high == self.low:
            return str(self.low)
        return f"{self.low} or more" if self.high is None else f"{self.low} to {self.high}"


@dataclass(frozen=True)
class DatasetStatistics:
    """Statistics of a dataset.

    label_positives_L: training positives per label; queries_by_words: number of queries by number of words, where the
    last one has MOST_WORDS or more; characters: median, 99th percentile and maximum of the length of the queries;
    known: None without test positives; exposures: pairs and impressions by split.
    """

    splits: Mapping[SplitName, SplitStatistics]
    label_positives_L: IntArray
    queries_by_words: IntArray
    characters: tuple[int, int, int]
    known: KnownShares | None
    exposures: Mapping[SplitName, tuple[int, int]]

    @property
    def weighted(self) -> bool:
        """Return whether the dataset has weights."""
        return any(split.weight is not None for split in self.splits.values())

    @property
    def weight(self) -> float:
        """Return the sum of all weights; 0 without weights."""
        return sum(split.weight or 0.0 for split in self.splits.values())

    @property
    def dated(self) -> bool:
        """Return whether the dataset has days."""
        return any(split.first_day is not None for split in self.splits.values())

    def label_groups(self) -> list[LabelGroup]:
        """Return the labels in groups of similar frequency; groups in the middle may be empty."""
        count_L = self.label_positives_L
        groups = []
        for low, high in FREQUENCIES:
            chosen = count_L[(count_L >= low) & (count_L <= (count_L if high is None else high))]
            groups.append(LabelGroup(low, high, len(chosen), int(chosen.sum())))
        return groups


def dataset_statistics(dataset: Dataset) -> DatasetStatistics:
    """Compute the statistics of all splits; train must have a positive. Raises DatasetError for an invalid row."""
    splits = {name: dataset.split(name) for name in SPLITS}
    positives_L = np.bincount(splits["train"].labels.values, minlength=dataset.n_labels)
    characters, words = _lengths(splits)
    return DatasetStatistics(
        splits={name: _split_statistics(split) for name, split in splits.items()},
        label_positives_L=positives_L,
        queries_by_words=words,
        characters=characters,
        known=_known_shares(splits["train"], splits["test"], positives_L),
        exposures=_exposures(dataset),
    )


def missing_days(days: Iterable[str], limit: int) -> tuple[int, list[str]]:
    """Return the number of days without rows between the first and the last day, and the first `limit` of them."""
    present = np.sort(np.array(list(days), "M8[D]"))
    if not len(present):
        return 0, []
    first: list[str] = []
    for day, following in pairwise(present):
        stop = min(following, day + 1 + limit - len(first))
        first += [str(missing) for missing in np.arange(day + 1, stop)]
    return int((present[-1] - present[0]).astype(int)) + 1 - len(present), first


def _split_statistics(split: Split) -> SplitStatistics:
    weight = None if split.weights_V is None else float(split.weights_V.sum(dtype=np.float64))
    days = [
        None if day_V is None or np.isnat(day_V).all() else str(reduce(day_V))
        for day_V, reduce in ((split.first_day_V, np.fmin.reduce), (split.last_day_V, np.fmax.reduce))
    ]
    return SplitStatistics(split.counts(), len(split.exclude.values), weight, days[0], days[1])


def _lengths(splits: Mapping[SplitName, Split]) -> tuple[tuple[int, int, int], IntArray]:
    """Return median, 99th percentile and maximum of the characters, and the number of queries by number of words."""
    characters = [np.zeros(0, np.int32)]
    words = np.zeros(MOST_WORDS + 1, np.int64)
    for split in splits.values():
        for texts in _steps(split.texts_column):
            characters.append(np.asarray(pc.utf8_length(texts)))
            parts = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(texts))
            words += np.bincount(np.minimum(pc.list_value_length(parts), MOST_WORDS), minlength=MOST_WORDS + 1)
    lengths = np.sort(np.concatenate(characters))
    middle, late = (int(lengths[int(share * (len(lengths) - 1))]) for share in (0.5, 0.99))
    return (middle, late, int(lengths[-1])), words[1:]


def _known_shares(train: Split, test: Split, positives_L: IntArray) -> KnownShares | None:
    if not len(test.labels.values):
        return None
    query_V = np.repeat(_in_train(train, test), test.labels.lengths)
    label_V = positives_L[test.labels.values] > 0
    return KnownShares(*(_share(known_V, test.weights_V) for known_V in (query_V, label_V, query_V & label_V)))


def _share(chosen_V: BoolArray, weights_V: NDArray[np.float32] | None) -> Share:
    weight = None if weights_V is None else float(np.average(chosen_V, weights=weights_V.astype(np.float64)))
    return Share(float(chosen_V.mean()), weight)


def _in_train(train: Split, test: Split) -> BoolArray:
    """Return T booleans: whether a training query has the same identity. Memory grows with the test queries only."""
    identities = pa.concat_arrays([query_identities(texts) for texts in _steps(test.texts_column)]).dictionary_encode()
    known = np.zeros(len(identities.dictionary), np.bool_)
    for texts in _steps(train.texts_column):
        places = pc.index_in(query_identities(texts), identities.dictionary)
        known[np.asarray(places.drop_null())] = True
    known_T: BoolArray = known[np.asarray(identities.indices)]
    return known_T


def _steps(column: Any) -> Iterator[Any]:
    """Yield a chunked column in arrays of at most ROWS_PER_STEP rows."""
    for chunk in column.chunks:
        for start in range(0, len(chunk), ROWS_PER_STEP):
            yield chunk.slice(start, ROWS_PER_STEP)


def _exposures(dataset: Dataset) -> dict[SplitName, tuple[int, int]]:
    """Return the number of pairs and of impressions of each split that has some. Reads the file in steps."""
    path = dataset.folder / f"{EXPOSURES}.parquet"
    if not path.is_file():
        return {}
    totals = dict.fromkeys(SPLITS, (0, 0))
    with path.open("rb") as file:  # Arrow opens only paths that are UTF-8
        for batch in pq.ParquetFile(file).iter_batches(ROWS_PER_STEP, columns=["split", "impressions"]):
            for name, (pairs, impressions) in totals.items():
                part = batch["impressions"].filter(pc.equal(batch["split"], name))
                totals[name] = (pairs + len(part), impressions + (pc.sum(part).as_py() or 0))
    return {name: total for name, total in totals.items() if total[0]}
