"""Clicks in training: sampling in proportion to weights, targets, popularity, exposures as hard negatives."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from retrieval.errors import DatasetError
from retrieval.query_text import QUERY_IDENTITY
from training.batching import batches
from training.batching.batches import Clicks
from training.batching.device_batch import build_device_batch
from training.batching.training_data import TrainingData, build_training_data, validation_queries
from training.data.clicks import repeated_queries
from training.data.dataset import Dataset, DatasetMeta, SplitName
from training.data.meta import Period
from training.data.ragged import Ragged
from training.data.token_cache import TextTokenizer
from training.model.tokenizer import make_tokenizer
from training.prepare.writing import write_dataset
from training.recipe.loading import load_recipe
from training.recipe.sections import BatchingRecipe

DRAWS = 20_000
WEIGHTS = [8.0, 4.0, 2.0, 1.0, 1.0]
LABELS = ["apple", "bread", "cheese", "dates", "eggs", "figs"]
EXPOSURES = {
    "split": ["train", "train", "train", "train", "test"],
    "query": ["fruit", "fruit", "fruit", "ham", "jam"],
    "row": pa.array([0, 0, 0, None, 0], pa.int32()),
    "label": pa.array([0, 3, 4, 5, 5], pa.int32()),
    "impressions": [5, 40, 2, 7, 7],
}


def lists(rows: list[list[Any]], kind: Any) -> Any:
    return pa.array(rows, pa.list_(kind))


def click_dataset(folder: Path, weighted: bool = True, exposures: bool = True) -> Dataset:
    """Write a dataset of two training queries, three validation queries and six labels."""
    numbers, days = pa.int32(), ["2026-09-01", "2026-09-07", None, "2026-08-01", "2026-09-08", "2026-09-10"]
    first_seen = pa.array(days).cast(pa.date32())
    labels = pa.table({"id": LABELS, "text": LABELS, "first_seen": first_seen})
    splits: dict[SplitName, Any] = {
        "train": {
            "id": ["1", "2"], "text": ["fruit", "loaf"], "labels": lists([[0, 1, 2], [1]], numbers),
            "exclude": lists([[4], []], numbers), "weights": lists([[2.0, 8.0, 1.0], [0.5]], pa.float32()),
        },
        "validation": {
            "id": ["1", "2", "3"], "text": ["FRUIT ", "bun", "pie"], "labels": lists([[0], [1, 2], [3]], numbers),
            "weights": lists([[30.0], [5.0, 1.0], [2.0]], pa.float32()),
        },
        "test": {
            "id": ["1"], "text": ["jam"], "labels": lists([[0]], numbers), "weights": lists([[1.0]], pa.float32()),
        },
    }  # fmt: skip
    tables = {name: pa.table(columns) for name, columns in splits.items()}
    if not weighted:
        tables = {name: table.drop_columns(["weights"]) for name, table in tables.items()}
    meta = DatasetMeta(name="food", period=Period(validation_from="2026-09-08", test_from="2026-09-09"))
    return write_dataset(folder, labels, tables, meta, exposures=pa.table(EXPOSURES) if exposures else None)


def training_data(dataset: Dataset, cache: Path, *overrides: str) -> TrainingData:
    recipe = load_recipe("default", ["encoder.vocabulary_size=64", "batching.label_queries.share=0", *overrides])
    learned = make_tokenizer(recipe, [*dataset.split("train").texts, *dataset.label_texts])
    tokenizer = TextTokenizer(learned, QUERY_IDENTITY)
    return build_training_data(dataset, recipe, validation_queries(dataset, recipe), tokenizer, cache)


def sampled(count: int, weights: list[float] | None) -> np.ndarray:
    """Draw `count` of the labels 0 to 4 for each of DRAWS queries; row r is the sample of query r, in order."""
    positives = Ragged.from_lists([range(5)] * DRAWS)
    weight_V = None if weights is None else np.tile(np.array(weights, np.float32), DRAWS)
    drawn = batches.sample_positives(positives, count, np.random.default_rng(7), weight_V)
    return drawn.values.reshape(DRAWS, count)


def test_the_first_positive_is_drawn_in_proportion_to_its_weight() -> None:
    """If this failed, α = 1 would not sample positives as often as they were clicked."""
    share = np.bincount(sampled(1, WEIGHTS).ravel(), minlength=5) / DRAWS
    expected = np.array(WEIGHTS) / sum(WEIGHTS)
    assert share == pytest.approx(expected, abs=4 * np.sqrt(expected.max() / DRAWS))


def test_later_positives_are_drawn_in_proportion_to_the_remaining_weights() -> None:
    """If this failed, sampling without replacement would favour other labels than successive draws."""
    first, second = sampled(2, WEIGHTS).T
    after_first = np.bincount(second[first == 0], minlength=5)
    expected = np.array([0, 4, 2, 1, 1]) / 8
    assert after_first / after_first.sum() == pytest.approx(expected, abs=4 * np.sqrt(0.5 / after_first.sum()))


@pytest.mark.parametrize("weight", [1.0, 0.125])
def test_equal_weights_draw_what_no_weights_draw(weight: float) -> None:
    """If this failed, a dataset whose pairs were all clicked equally often would train to other weights."""
    np.testing.assert_array_equal(sampled(3, [weight] * 5), sampled(3, None))


def test_shown_labels_are_in_the_pool_as_negatives_of_their_query() -> None:
    """If this failed, exposures would not be learned from, or one would become a positive."""
    recipe = BatchingRecipe(positives=1, hard_negatives=0)
    clicks = Clicks(shown=Ragged.from_lists([[5, 6, 7], []]), shown_per_query=2)
    positives, generator = Ragged.from_lists([[0], [1]]), np.random.default_rng(0)
    batch = batches.make_batch(np.arange(2), positives, None, Ragged.empty(2), None, 9, recipe, generator, clicks)
    shown = set(batch.pool_P.tolist()) - {0, 1}
    assert len(shown) == 2
    assert shown < {5, 6, 7}
    assert batch.pool_P[batch.positive_column_M].tolist() == [0, 1]


def test_the_keys_of_the_recipe_decide_what_clicks_change(tmp_path: Path) -> None:
    """If this failed, a key would have no effect, or change something else than it says."""
    dataset = click_dataset(tmp_path / "food")
    plain = training_data(dataset, tmp_path / "a")
    assert (plain.target_V, plain.clicks, plain.click_frequency_L) == (None, batches.NO_CLICKS, None)
    keys = ["clicks.sampling=0.5", "clicks.loss=2", "clicks.popularity=1", "clicks.exposed_negatives=3"]
    data = training_data(dataset, tmp_path / "b", *keys)
    assert data.clicks.weight_V == pytest.approx([0.5, 1, np.sqrt(1 / 8), 1])
    assert data.clicks.share_V == pytest.approx([1 / 16, 1, 1 / 64, 1])
    assert data.target_V is None
    assert data.click_frequency_L == pytest.approx([2, 8.5, 1, 0, 0, 0])
    assert data.clicks.shown is not None
    assert [row.tolist() for row in data.clicks.shown] == [[3], []]  # 0 is a positive, 4 is excluded
    assert (data.positives_L == plain.positives_L).all()


def test_label_queries_have_no_clicks(tmp_path: Path) -> None:
    """If this failed, weights, shares and exposures of label queries would be those of other rows."""
    dataset = click_dataset(tmp_path / "food")
    keys = ["clicks.sampling=1", "clicks.loss=1", "clicks.exposed_negatives=1"]
    queries = ["batching.label_queries.share=3", "batching.label_queries.targets=one_hot"]
    data = training_data(dataset, tmp_path / "a", *keys, *queries)
    assert len(data.train) == 2 + len(LABELS)
    assert data.target_V is None
    assert data.clicks.weight_V is not None
    assert data.clicks.shown is not None
    expected = [0.25, 1, 0.125, *[1] * (1 + len(LABELS))]
    assert data.clicks.share_V == pytest.approx(expected)
    assert data.clicks.weight_V == pytest.approx(expected)
    assert data.clicks.shown.lengths.tolist() == [1, 0, *[0] * len(LABELS)]


def test_a_labels_text_is_a_positive_of_the_label_for_the_classifier_only(tmp_path: Path) -> None:
    """If it fails, the dual encoder learns that a text is like itself, or the classifier learns nothing from it."""
    dataset = click_dataset(tmp_path / "food", weighted=False)
    queries = ["batching.label_queries.share=3", "batching.label_queries.targets=one_hot", "batching.pool_size=all"]
    data = training_data(dataset, tmp_path / "a", *queries)
    recipe = load_recipe("default", queries).batching
    rows = np.arange(len(data.train))
    batch = batches.make_batch(
        rows, data.train.labels, None, data.train.exclude, None, len(LABELS), recipe, np.random.default_rng(0)
    )
    on_device = build_device_batch(batch, data, torch.device("cpu"), encode_labels=True)
    assert on_device.dual is not None
    own_QP = torch.zeros_like(on_device.targets.positive_QP)
    own_QP[2:] = torch.eye(len(LABELS), dtype=torch.bool)
    assert torch.equal(on_device.targets.positive_QP[2:], own_QP[2:])
    for before, dual in zip((on_device.targets, on_device.picked), on_device.dual, strict=True):
        assert not (dual.positive_QP & own_QP).any()
        assert dual.ignored_QP is not None
        assert dual.ignored_QP[own_QP].all()
        assert torch.equal(dual.positive_QP[:2], before.positive_QP[:2])
        assert (dual.row_M < 2).all()


def test_without_weights_the_keys_change_nothing(tmp_path: Path) -> None:
    """If this failed, the same recipe could not be used for datasets with and without clicks."""
    dataset = click_dataset(tmp_path / "food", weighted=False)
    data = training_data(dataset, tmp_path / "a", "clicks.sampling=1", "clicks.loss=1", "clicks.popularity=1")
    assert data.clicks == batches.NO_CLICKS
    assert data.click_frequency_L is None


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("clicks.exposed_negatives=1", "has no exposures, which clicks.exposed_negatives needs."),
        ("validation.metrics=[P@1, wP@1]", "has no click weights, which validation.metrics needs for wP@1."),
    ],
)
def test_clicks_that_a_recipe_needs_are_required(tmp_path: Path, override: str, sentence: str) -> None:
    """If this failed, a run would silently select by other metrics or train without hard negatives."""
    dataset = click_dataset(tmp_path / "food", weighted=False, exposures=False)
    with pytest.raises(DatasetError, match=sentence):
        training_data(dataset, tmp_path / "a", override)


def test_repeated_queries_and_ages_of_labels(tmp_path: Path) -> None:
    """If this failed, known queries or old labels would be reported as new ones."""
    data = training_data(click_dataset(tmp_path / "food"), tmp_path / "a")
    assert data.repeated_Q is not None
    assert data.repeated_Q.tolist() == [True, False, False]
    assert data.label_age_L is not None
    np.testing.assert_array_equal(data.label_age_L, np.array([7, 1, np.nan, 38, 0, -2], np.float32))
    assert repeated_queries(["bun"], ["loaf"]) is None
