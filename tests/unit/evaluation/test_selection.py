"""The selection on shortlists, against one that ranks all labels at every candidate.

Shapes: Q queries, L labels, X distractors, S labels of a shortlist.
"""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.bundle.memory_labels import MemoryLabels
from training.data.ragged import Ragged
from training.data.split import Split
from training.evaluation.imputation import CONE_FRACTIONS, Imputation, impute
from training.evaluation.memory import QueryMemory
from training.evaluation.ranking import EXCLUDED_COSINE, ExactRanker, best_columns
from training.evaluation.results import EvaluationData, evaluate
from training.evaluation.scoring import LabelVectors, QueryVectors, ScoreMix, mixes_by_head, popularity
from training.evaluation.selection import shortlists
from training.evaluation.selection.distractors import choose_originals, distractor_vectors, hidden_distractors
from training.evaluation.selection.grid import GridMetrics
from training.evaluation.selection.select import choose_mix, select
from training.evaluation.selection.shortlists import list_labels, spanning_mixes
from training.recipe.sections import MemoryRecipe, ValidationRecipe

QUERIES, LABELS, WIDTH = 30, 90, 5
NAMES = ("P@1", "P@5", "R@10", "PSP@5", "nDCG@3", "C@10")
GRID = ((0.0, 0.3, 0.5, 0.8, 1.0), (0.0, 0.2, 0.7))
SPANNING = spanning_mixes(0.7)
VOTES = MemoryRecipe(weights=(0.3, 2.0), temperatures=(0.1, 0.3), neighbours=(3, 6))


@dataclasses.dataclass
class Case:
    """Encoded queries, labels imputed with κ = 1, true and excluded labels, and a memory."""

    queries: QueryVectors
    labels: LabelVectors
    data: EvaluationData
    memory: QueryMemory


def random_case(seed: int, weights: bool = False) -> Case:
    draw, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)

    def unit(rows: int) -> torch.Tensor:
        return F.normalize(torch.randn(rows, WIDTH, generator=generator), dim=1)

    dual, rows = unit(LABELS), unit(LABELS) - torch.tensor([1.0, 0, 0, 0, 0])
    positives_L = draw.integers(1, 30, LABELS) * (draw.random(LABELS) > 0.2)
    imputation = impute(dual.numpy(), rows, positives_L > 0)
    labels = LabelVectors(dual, F.normalize(rows, dim=1), torch.from_numpy(popularity(positives_L)), imputation)
    queries = QueryVectors(unit(QUERIES), unit(QUERIES))
    near = (queries.dual @ dual.T + queries.classifier @ rows.T).topk(12, dim=1).indices.numpy()
    truth = [draw.choice(row, draw.integers(1, 5), replace=False) for row in near]
    exclude = [np.setdiff1d(draw.choice(LABELS, 4), true) for true in truth]
    names = [str(row) for row in range(QUERIES)]
    split = Split.from_lists(names, names, Ragged.from_lists(truth), Ragged.from_lists(exclude))
    if weights:
        split = dataclasses.replace(split, weights_V=draw.uniform(1, 9, len(split.labels.values)).astype(np.float32))
    memory_labels = np.concatenate([draw.choice(LABELS, 2, replace=False) for _ in range(20)]).astype(np.int32)
    memory = QueryMemory(
        QueryVectors(unit(20), unit(20)), MemoryLabels(np.arange(21) * 2, memory_labels, np.ones(40, np.float32))
    )
    data = EvaluationData(split, positives_L, draw.uniform(1, 9, LABELS))
    return Case(queries, labels.with_imputation(1.0), data, memory)


def exact_scores(
    case: Case, mixes: list[ScoreMix], cone_fraction: float, memory: QueryMemory | None = None
) -> dict[ScoreMix, float]:
    """Rank all labels at every mix and compute the mean of the metrics."""
    labels = case.labels.with_imputation(cone_fraction)
    rankings = ExactRanker(case.queries, labels, case.data.queries.exclude, memory).rank(mixes)
    metrics = {mix: case.data.metrics(row_QK) for mix, row_QK in rankings.items()}
    return {mix: float(np.mean([values[name] for name in NAMES])) for mix, values in metrics.items()}


def with_copies(case: Case, original_X: np.ndarray) -> Case:
    """Append the distractors to the labels."""
    labels, copies, data = case.labels, distractor_vectors(case.labels, original_X), case.data
    hidden = hidden_distractors(data, original_X)
    exclude = data.queries.exclude.concat_values(Ragged(hidden.values + LABELS, hidden.offsets))
    both = Imputation(
        np.concatenate([labels.imputation.label_U, LABELS + np.arange(len(original_X))]),
        torch.cat([labels.imputation.mean_UC, copies.imputation.mean_UC]), labels.imputation.direction_C,
    )  # fmt: skip
    values = (
        torch.cat([getattr(labels, name), getattr(copies, name)]) for name in ("dual", "classifier", "popularity")
    )
    data = dataclasses.replace(
        data, queries=dataclasses.replace(data.queries, exclude=exclude),
        positives_L=np.append(data.positives_L, np.zeros(len(original_X), np.int64)),
        inverse_propensity_L=np.append(data.inverse_propensity_L, np.ones(len(original_X))),
    )  # fmt: skip
    return dataclasses.replace(case, labels=LabelVectors(*values, both), data=data)


@pytest.mark.parametrize("seed", range(6))
def test_the_selection_is_the_best_of_all_candidates_on_all_labels(seed: int) -> None:
    """If it fails, a shortlist lacks an answer, and the selected settings are not the best ones."""
    case = random_case(seed)
    recipe = ValidationRecipe(metrics=NAMES, distractors=1.0)
    chosen = select(case.queries, case.labels, case.data, GRID, recipe, memory=case.memory, votes=VOTES, seed=seed)
    mixes = [ScoreMix(weight, bonus) for weight in GRID[0] for bonus in (GRID[1] if weight else (0.0,))]
    plain, best = choose_mix(exact_scores(case, mixes, CONE_FRACTIONS[0]))
    memory = case.memory.with_half(plain.weight > 0)
    voted = exact_scores(case, [chosen.mix], CONE_FRACTIONS[0], memory)[chosen.mix]
    assert voted >= best - 1e-9
    original_X = choose_originals(case.labels, case.data, 1.0, seed)
    assert len(original_X) > 20
    among = with_copies(case, original_X)
    by_cone = {kappa: exact_scores(among, [chosen.mix], kappa, memory)[chosen.mix] for kappa in CONE_FRACTIONS}
    assert by_cone[chosen.cone_fraction] == pytest.approx(max(by_cone.values()))
    assert chosen.score == pytest.approx(by_cone[chosen.cone_fraction], abs=1e-9), "the score has no distractors"


@pytest.mark.parametrize("seed", range(3))
def test_rankings_of_the_selection_are_those_of_all_labels_and_of_the_seen_ones(seed: int) -> None:
    """If it fails, the metrics of an epoch are not those that `diptych evaluate` shows for it."""
    case = random_case(seed)
    recipe = ValidationRecipe(metrics=NAMES)
    chosen = select(case.queries, case.labels, case.data, GRID, recipe, memory=case.memory, votes=VOTES)
    heads = mixes_by_head(chosen.mix)
    labels = case.labels.with_imputation(chosen.cone_fraction)
    memory = case.memory.with_half(chosen.mix.weight > 0)
    exact = evaluate(ExactRanker(case.queries, labels, case.data.queries.exclude, memory), case.data, heads)
    listed = evaluate(chosen.ranker, case.data, heads)
    assert exact.seen is not None
    assert listed.seen is not None
    for name in heads:
        assert listed.rankings[name].tolist() == exact.rankings[name].tolist()
        assert listed.seen.rankings[name].tolist() == exact.seen.rankings[name].tolist()


def test_a_fixed_weight_is_kept_and_the_best_one_is_reported() -> None:
    """If it fails, a published recipe is evaluated at a weight that it does not state."""
    case = random_case(1)
    recipe = ValidationRecipe(metrics=("P@1", "P@5"))
    free = select(case.queries, case.labels, case.data, GRID, recipe)
    fixed = select(case.queries, case.labels, case.data, GRID, recipe, fixed_weight=0.45)
    assert fixed.mix.weight == 0.45
    assert fixed.tuned == free.mix
    assert free.tuned is None


def test_untrained_labels_are_listed_at_every_cone_fraction(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, κ is chosen among labels that the shortlists of one κ contain."""
    monkeypatch.setattr(shortlists, "SCORES_PER_BLOCK", 7 * LABELS)
    monkeypatch.setattr(shortlists, "MIN_QUERIES", 1)
    case = random_case(2)
    lists = list_labels(case.queries, case.labels, case.data.queries.exclude, SPANNING, size=3)
    excluded = case.data.queries.exclude
    for kappa in shortlists.SPANNING_FRACTIONS:
        rows_LC = case.labels.with_imputation(kappa).classifier[torch.from_numpy(case.labels.imputation.label_U)]
        for query in range(QUERIES):
            listed = lists.row_QS[query][lists.row_QS[query] >= 0].tolist()
            best = case.labels.imputation.label_U[(rows_LC @ case.queries.classifier[query]).argsort(descending=True)]
            allowed = [row for row in best.tolist() if row not in excluded[query]]
            assert set(allowed[:3]) <= set(listed)
            assert listed == sorted(set(listed))
            assert not set(listed) & set(excluded[query].tolist())


@pytest.mark.parametrize("weights", [False, True])
def test_grid_metrics_are_those_of_retrieval_metrics(weights: bool) -> None:
    """If it fails, the settings are selected by other metrics than those that are reported."""
    case = random_case(3, weights)
    names = ("P@1", "P@3", "R@5", "R@10", "PSP@1", "PSP@10", "nDCG@3", "nDCG@10", "C@1", "C@10")
    names += ("wP@1", "wP@5", "wR@10") if weights else ()
    lists = list_labels(case.queries, case.labels, case.data.queries.exclude, SPANNING).at(0.5)
    mix = ScoreMix(0.4, 0.1)
    ranker = ExactRanker(case.queries, case.labels.with_imputation(0.5), case.data.queries.exclude)
    expected = case.data.metrics(ranker.rank([mix])[mix])
    for name in names:
        assert GridMetrics(case.data, lists.row_QS, [name]).mean(lists.scores(mix)) == pytest.approx(expected[name])


def test_merged_lists_have_each_label_once() -> None:
    """If it fails, a label that two lists have takes two ranks."""
    case = random_case(4)
    exclude = case.data.queries.exclude
    few, many = (list_labels(case.queries, case.labels, exclude, SPANNING, size=size) for size in (2, 6))
    both = few.merged(many)
    assert [set(row) - {-1} for row in both.row_QS.tolist()] == [set(row) - {-1} for row in many.row_QS.tolist()]
    torch.testing.assert_close(both.dual_QS, many.dual_QS)
    assert (both.dual_QS[both.row_QS < 0] == EXCLUDED_COSINE).all()
    assert both.listed(LABELS).sum() == len(set(many.row_QS.flatten().tolist()) - {-1})


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(1, 12), st.integers(0, 99))
def test_best_columns_are_those_of_topk(columns: int, count: int, seed: int) -> None:
    """If it fails, the comparison in groups loses a label."""
    scores_QL = torch.randperm(3 * columns, generator=torch.Generator().manual_seed(seed)).float().view(3, columns)
    expected = torch.topk(scores_QL, min(count, columns), dim=1).indices.sort(dim=1).values
    assert torch.equal(best_columns(scores_QL, count).sort(dim=1).values, expected)
