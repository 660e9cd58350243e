"""A synthetic click log of any size, whose numbers of distinct pairs, queries and labels are exact.

A log of n rows has n / 5 distinct pairs, or a given number, a twentieth as many labels, and three queries per label.
The number of labels per query, the rows per pair and the impressions per row have heavy tails; about two thirds of the
pairs have a click. Every file depends only on the plan, its day and its number, so that any day can be written again.

Suffixes: R rows of a file, P pairs, Q queries, L labels, T texts.
"""

from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from retrieval.errors import BadInput

FIRST_DAY = date(2026, 9, 1)
MARKETS = ("de", "fr", "uk", "us")
MARKET_SHARES = (0.2, 0.15, 0.25, 0.4)
ROWS_PER_FILE = 2_000_000
MIN_ROWS = 10_000  # fewer have queries with more labels than exist
WORDS = 4_000  # two words are a distinct text, so there are 16 million texts at most
NON_ASCII_WORDS = 40
CLICK_RATE = (1.0, 7.0)  # Beta distribution over pairs
SCHEMA = pa.schema(
    dict.fromkeys(("query", "label", "label_text", "market"), pa.string())
    | {"impressions": pa.int64(), "clicks": pa.int64(), "date": pa.date32()}
)


@dataclass(frozen=True)
class LogPlan:
    """All that a log depends on. `quoted` is the share of queries and of label texts that CSV must quote."""

    rows: int = 100_000_000
    days: int = 7
    seed: int = 0
    quoted: float = 0.01
    rows_per_file: int = ROWS_PER_FILE
    pairs: int | None = None  # distinct ones of all days; None: a fifth of the rows

    def __post_init__(self) -> None:
        if self.n_queries > WORDS**2:
            raise BadInput(f"{self.rows:,} rows need more than {WORDS**2:,} texts. Choose fewer rows.")
        if self.rows < max(MIN_ROWS, self.days):
            raise BadInput(f"{self.rows:,} rows are too few for {self.days} days. Choose at least {MIN_ROWS:,}.")
        if not MIN_ROWS // 5 <= self.n_pairs <= self.rows:
            raise BadInput(f"{self.rows:,} rows cannot have {self.n_pairs:,} pairs. Choose {MIN_ROWS // 5:,} or more.")

    @property
    def n_pairs(self) -> int:
        """Return the number of distinct (query, label) pairs of all days."""
        return self.rows // 5 if self.pairs is None else self.pairs

    @property
    def n_queries(self) -> int:
        """Return the number of distinct queries of all days."""
        return 3 * self.n_labels

    @property
    def n_labels(self) -> int:
        """Return the number of distinct labels of all days."""
        return self.n_pairs // 20

    def rows_of(self, day: int) -> int:
        """Return the number of rows of a day, from 0."""
        return self.rows * (day + 1) // self.days - self.rows * day // self.days

    def files_of(self, day: int) -> int:
        """Return the number of files of a day."""
        return -(-self.rows_of(day) // self.rows_per_file)

    def date_of(self, day: int) -> date:
        """Return the date of a day."""
        return FIRST_DAY + timedelta(days=day)


class SyntheticLog:
    """The pairs and texts of a plan, from which files of rows are drawn."""

    def __init__(self, plan: LogPlan) -> None:
        self.plan = plan
        self.labels_per_query_Q = _labels_per_query(plan.n_pairs, plan.n_queries)
        self.first_pair_Q = np.cumsum(self.labels_per_query_Q) - self.labels_per_query_Q
        self.first_label_Q = self._first_labels()

    def _first_labels(self) -> NDArray[np.int32]:
        """Return the first label of each query. Its other labels follow, so queries share neighbouring labels.

        A third of the queries begins with a label of its own, so that each label occurs; the others prefer few labels.
        """
        random = np.random.default_rng((self.plan.seed, 1))
        query_Q = np.arange(self.plan.n_queries)
        popular_Q = (self.plan.n_labels * random.random(self.plan.n_queries) ** 3).astype(np.int32)
        return np.where(query_Q % 3 == 0, query_Q // 3, popular_Q).astype(np.int32)

    @cached_property
    def query_P(self) -> NDArray[np.int32]:
        """Return the query of each pair."""
        return np.repeat(np.arange(self.plan.n_queries, dtype=np.int32), self.labels_per_query_Q)

    @cached_property
    def query_texts_Q(self) -> Any:
        """Return the texts of all queries."""
        return texts(self.plan.n_queries, (self.plan.seed, 2), self.plan.quoted, 'buy "{}", cheap')

    @cached_property
    def label_texts_L(self) -> Any:
        """Return the texts of all labels."""
        return texts(self.plan.n_labels, (self.plan.seed, 3), self.plan.quoted, '{}, "original"')

    @cached_property
    def label_ids_L(self) -> Any:
        """Return the ids of all labels."""
        return pc.binary_join_element_wise("kw", pa.array(np.arange(self.plan.n_labels) + 10**6).cast(pa.string()), "")

    def labels_of(self, pair_R: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the labels of pairs."""
        query_R = self.query_P[pair_R]
        rank_R = pair_R - self.first_pair_Q[query_R]
        return np.asarray((self.first_label_Q[query_R] + rank_R) % self.plan.n_labels, np.int64)

    def _pairs_of(self, day: int, file: int, random: np.random.Generator) -> NDArray[np.int32]:
        """Return the pair of each row of a file: pairs that belong to this file, and draws that prefer few pairs."""
        plan, files = self.plan, self.plan.files_of(day)
        start, end = (plan.rows_of(day) * number // files for number in (file, file + 1))
        home_pairs = np.arange(day + plan.days * file, plan.n_pairs, plan.days * files, dtype=np.int32)
        drawn = (plan.n_pairs * random.random(end - start - len(home_pairs)) ** 1.5).astype(np.int32)
        return random.permutation(np.concatenate([home_pairs, drawn]))

    def rows(self, day: int, file: int) -> Any:
        """Return the rows of one file as a pa.Table."""
        random = np.random.default_rng((self.plan.seed, 4, day, file))
        pair_R = self._pairs_of(day, file, random)
        label_R = self.labels_of(pair_R)
        rank_R = pair_R / self.plan.n_pairs
        impressions_R = (1 + (1 - 0.8 * rank_R) * 4 * random.pareto(1.3, len(pair_R)).clip(max=1e6)).astype(np.int64)
        rate_P = np.random.default_rng((self.plan.seed, 5)).beta(*CLICK_RATE, 1 << 16)  # a pair has the same every day
        clicks_R = random.binomial(impressions_R, rate_P[(pair_R * np.int64(40_503)) & 0xFFFF])
        market_R = np.searchsorted(np.cumsum(MARKET_SHARES), random.random(len(pair_R))).clip(max=len(MARKETS) - 1)
        columns = [
            self.query_texts_Q.take(pa.array(self.query_P[pair_R])),
            self.label_ids_L.take(pa.array(label_R)),
            self.label_texts_L.take(pa.array(label_R)),
            pa.array(MARKETS).take(pa.array(market_R)),
            pa.array(impressions_R),
            pa.array(clicks_R),
            pa.repeat(pa.scalar(self.plan.date_of(day), pa.date32()), len(pair_R)),
        ]
        return pa.Table.from_arrays(columns, schema=SCHEMA)


def _labels_per_query(n_pairs: int, n_queries: int) -> NDArray[np.int64]:
    """Return the number of labels of each query, most first, at least 1, with the given sum."""
    shape_Q = np.arange(1, n_queries + 1) ** -0.5
    ends_Q = np.floor(np.cumsum(shape_Q) / shape_Q.sum() * (n_pairs - n_queries) + 1e-6).astype(np.int64)
    ends_Q[-1] = n_pairs - n_queries
    return np.asarray(1 + np.diff(ends_Q, prepend=0))


def texts(number: int, seed: tuple[int, ...], quoted: float, quoted_form: str) -> Any:
    """Return distinct texts of 2 to 4 words; a share `quoted` has the form with quotes and commas."""
    random = np.random.default_rng(seed)
    words = words_of(random)
    place_T = (np.arange(number) * 6_700_417 + int(random.integers(WORDS**2))) % WORDS**2  # a permutation: odd, no 5
    length_T = random.choice(3, number, p=(0.5, 0.35, 0.15))
    first = pc.binary_join_element_wise(words.take(place_T // WORDS), words.take(place_T % WORDS), " ")
    tails = [pa.array(np.where(length_T > tail, random.integers(0, WORDS, number), WORDS)) for tail in (0, 1)]
    spaced = pa.chunked_array([pc.binary_join_element_wise(" ", words, ""), [""]]).combine_chunks()
    result = pc.binary_join_element_wise(first, *(spaced.take(tail) for tail in tails), "")
    start, end = quoted_form.split("{}")
    return pc.if_else(random.random(number) < quoted, pc.binary_join_element_wise(start, result, end, ""), result)


def words_of(random: np.random.Generator) -> Any:
    """Return WORDS distinct words of two syllables; NON_ASCII_WORDS of them have a letter with an accent."""
    syllables = [consonant + vowel for consonant in "bcdfghjklmnprstvwz" for vowel in "aeiou"]
    words = [a + b + end for a in syllables for b in syllables for end in ("", "n", "r", "st")]
    chosen = [words[int(number)] for number in random.permutation(len(words))[:WORDS]]
    accented = [word.translate(str.maketrans("aeiou", "äéíöü")) for word in chosen[:NON_ASCII_WORDS]]
    return pa.array(accented + chosen[NON_ASCII_WORDS:])
