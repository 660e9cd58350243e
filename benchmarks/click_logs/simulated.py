"""A simulated click log with known truth, from queries with lists of labels.

Each search shows up to POSITIONS labels: labels of the query, and others that are not. A pair has a relevance, which
drifts over the days for some pairs. The ranker is fixed and mostly ignores relevance, so that clicks per impression
mislead. P(click) = examination(position) · relevance(pair), the position-based model. Bots click on a few pairs, each
in one row of another source, and some labels get another text.

Suffixes: Q queries, L labels, P pairs, S searches, K positions, C cells (pair, day, position), B bots,
R rows.
"""

import json
import lzma
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
POSITIONS = 10
OWN_LABELS = 7  # at most, so that labels that are not relevant are shown too
FIRST_DAY = date(2026, 9, 1)
SOURCES = 20  # of clicks by people
RENAMED = ("{} online", "new {}", "{} plus", "{} shop")


@dataclass(frozen=True)
class Simulation:
    """Settings of a simulated log. Shares are of pairs (drift, bots) and of labels (renamed)."""

    days: int = 14
    searches: int = 400_000
    seed: int = 0
    examination_exponent: float = 0.9  # examination at position k is k^−exponent
    drift: float = 0.2
    bots: float = 0.0005
    renamed: float = 0.05
    bot_clicks: int = 20_000  # at most, on one day

    @property
    def examination_K(self) -> FloatArray:
        """Return the true examination probabilities of positions 1 to POSITIONS."""
        return np.asarray(np.arange(1, POSITIONS + 1) ** -self.examination_exponent, np.float64)


class Pairs(NamedTuple):
    """Candidate pairs, POSITIONS per query at most: row of query and label, relevance on the first and last day."""

    query_P: IntArray
    label_P: IntArray
    first_relevance_P: FloatArray
    last_relevance_P: FloatArray


class Rows(NamedTuple):
    """Rows of the log: row of the pair, day and position from 0, source, impressions and clicks."""

    pair_R: IntArray
    day_R: IntArray
    position_R: IntArray
    source_R: IntArray
    impressions_R: IntArray
    clicks_R: IntArray


class SimulatedLog(NamedTuple):
    """The log (query, label, label_text, date, position, source, impressions, clicks) and the truth.

    The truth has per pair query, label, relevance (of the last day), traffic (share of the searches) and bot.
    """

    rows: Any
    truth: Any


def read_queries(path: Path) -> tuple[list[str], list[list[str]]]:
    """Return queries and their label texts from JSON lines, compressed by xz."""
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    return [record["query"] for record in records], [record["labels"] for record in records]


def simulate(queries: Sequence[str], labels: Sequence[Sequence[str]], plan: Simulation) -> SimulatedLog:
    """Return the log and its truth; equal arguments return equal tables."""
    random = np.random.default_rng(plan.seed)
    label_texts = sorted({text for texts in labels for text in texts})
    number = {text: row for row, text in enumerate(label_texts)}
    pairs = _pairs([[number[text] for text in texts] for texts in labels], len(label_texts), plan, random)
    traffic_Q = random.permutation((np.arange(len(queries)) + 10.0) ** -1.0)
    traffic_Q /= traffic_Q.sum()
    rows, bot_P = _rows(pairs, traffic_Q, plan, random)
    table = {
        "query": pa.array(queries).take(pa.array(pairs.query_P[rows.pair_R])),
        **_label_columns(label_texts, pairs.label_P[rows.pair_R], rows.day_R, plan, random),
        "date": pa.array([FIRST_DAY + timedelta(days=day) for day in range(plan.days)]).take(pa.array(rows.day_R)),
        "position": pa.array(rows.position_R + 1),
        "source": pc.binary_join_element_wise("s", pa.array(rows.source_R).cast(pa.string()), ""),
        "impressions": pa.array(rows.impressions_R),
        "clicks": pa.array(rows.clicks_R),
    }
    truth = {
        "query": pa.array(queries).take(pa.array(pairs.query_P)),
        "label": _label_ids(pairs.label_P),
        "relevance": pa.array(pairs.last_relevance_P),
        "traffic": pa.array(traffic_Q[pairs.query_P]),
        "bot": pa.array(bot_P),
    }
    return SimulatedLog(pa.table(table), pa.table(truth))


def _rows(
    pairs: Pairs, traffic_Q: FloatArray, plan: Simulation, random: np.random.Generator
) -> tuple[Rows, NDArray[np.bool_]]:
    """Return the rows of the log, those of bots last, and which pairs a bot clicks on."""
    pair_C, day_C, position_C, impressions_C = _impressions(pairs, traffic_Q, plan, random)
    share_C = day_C / max(plan.days - 1, 1)
    relevance_C = pairs.first_relevance_P[pair_C] * (1 - share_C) + pairs.last_relevance_P[pair_C] * share_C
    clicks_C = random.binomial(impressions_C, relevance_C * plan.examination_K[position_C])
    bot_P, cell_B, clicks_B = _bots(pair_C, day_C, len(pairs.query_P), plan, random)
    cell_R = np.concatenate([np.arange(len(pair_C)), cell_B])
    source_R = np.concatenate([random.integers(0, SOURCES, len(pair_C)), SOURCES + np.arange(len(cell_B))])
    counts = (np.concatenate([counts_C, clicks_B]) for counts_C in (impressions_C, clicks_C))
    return Rows(pair_C[cell_R], day_C[cell_R], position_C[cell_R], source_R, *counts), bot_P


def _label_ids(label_C: IntArray) -> Any:
    return pc.binary_join_element_wise("k", pc.utf8_lpad(pa.array(label_C).cast(pa.string()), 6, "0"), "")


def _pairs(labels: Sequence[Sequence[int]], n_labels: int, plan: Simulation, random: np.random.Generator) -> Pairs:
    """Return the candidates of each query: some of its labels, and distractors that prefer frequent labels.

    The logit of the relevance is the sum of an effect of the label and one of the pair.
    """
    all_labels = np.concatenate([np.asarray(one, np.int64) for one in labels])
    query_P, label_P, is_own_P = [], [], []
    for query, own in enumerate(labels):
        shown = random.permutation(np.asarray(own, np.int64))[:OWN_LABELS]
        others = np.setdiff1d(random.choice(all_labels, POSITIONS - len(shown)), np.asarray(own, np.int64))
        query_P.append(np.full(len(shown) + len(others), query))
        label_P += [shown, others]
        is_own_P.append(np.arange(len(shown) + len(others)) < len(shown))
    own_P, label_of_P = np.concatenate(is_own_P), np.concatenate(label_P)
    effect_P = 0.8 * random.normal(size=n_labels)[label_of_P] + 0.8 * random.normal(size=len(own_P))
    first_P = effect_P + np.where(own_P, -1.5, -5.0)
    change_P = np.where(random.random(len(own_P)) < plan.drift, random.normal(0, 2.0, len(own_P)), 0.0)
    return Pairs(np.concatenate(query_P), label_of_P, _sigmoid(first_P), _sigmoid(first_P + change_P))


def _sigmoid(x_P: FloatArray) -> FloatArray:
    return np.asarray(1 / (1 + np.exp(-x_P)))


def _impressions(
    pairs: Pairs, traffic_Q: FloatArray, plan: Simulation, random: np.random.Generator
) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """Return pair, day, position from 0, and impressions of each cell with impressions.

    The ranker orders a query's pairs by a fixed score, which depends little on the relevance, plus noise per search.
    """
    n_Q = np.bincount(pairs.query_P, minlength=len(traffic_Q))
    first_pair_Q = np.cumsum(n_Q) - n_Q
    logit_P = np.log(pairs.first_relevance_P / (1 - pairs.first_relevance_P))
    score_P = 0.3 * logit_P + random.normal(size=len(logit_P))
    query_S = random.choice(len(traffic_Q), plan.searches, p=traffic_Q)
    day_S = random.integers(0, plan.days, plan.searches)
    pair_SK = first_pair_Q[query_S][:, None] + np.arange(POSITIONS)
    exists_SK = np.arange(POSITIONS) < n_Q[query_S][:, None]
    noisy_SK = score_P[np.minimum(pair_SK, len(score_P) - 1)] + random.gumbel(0, 0.5, pair_SK.shape)
    order_SK = np.argsort(np.where(exists_SK, -noisy_SK, np.inf), axis=1)
    shown_SK = np.take_along_axis(exists_SK, order_SK, axis=1)
    key_SK = (np.take_along_axis(pair_SK, order_SK, axis=1) * plan.days + day_S[:, None]) * POSITIONS
    keys_C, impressions_C = np.unique((key_SK + np.arange(POSITIONS))[shown_SK], return_counts=True)
    return keys_C // POSITIONS // plan.days, keys_C // POSITIONS % plan.days, keys_C % POSITIONS, impressions_C


def _bots(
    pair_C: IntArray, day_C: IntArray, n_pairs: int, plan: Simulation, random: np.random.Generator
) -> tuple[NDArray[np.bool_], IntArray, IntArray]:
    """Return which pairs a bot clicks on, and for each bot its cell and its clicks, each with an impression.

    Bots spare the last day, so that the test split has none.
    """
    bot_P = random.random(n_pairs) < plan.bots
    early = np.flatnonzero(day_C < plan.days - 1)
    seen, first = np.unique(pair_C[early], return_index=True)
    cell_B = early[first[bot_P[seen]]]
    return bot_P, cell_B, random.integers(plan.bot_clicks // 20, plan.bot_clicks, len(cell_B), endpoint=True)


def _label_columns(
    texts: Sequence[str], label_C: IntArray, day_C: IntArray, plan: Simulation, random: np.random.Generator
) -> dict[str, Any]:
    """Return label ids and the texts of the day: a renamed label has its new text from one of the days."""
    renamed_L = random.random(len(texts)) < plan.renamed
    from_day_L = np.where(renamed_L, random.integers(1, max(plan.days, 2), len(texts)), plan.days)
    form_L = random.integers(0, len(RENAMED), len(texts))
    new_texts = [RENAMED[form].format(text) for form, text in zip(form_L, texts, strict=True)]
    is_new_C = day_C >= from_day_L[label_C]
    both = pa.array([*texts, *new_texts])
    return {"label": _label_ids(label_C), "label_text": both.take(pa.array(label_C + len(texts) * is_new_C))}
