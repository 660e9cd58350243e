"""Training with click weights, days and exposures: same weights when resumed, and metrics in every report."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from export.geometry import classifier_vectors
from retrieval import open_bundle
from tests.support.command import run
from tests.support.listener import RecordingCallback
from tests.support.training.checkpoints import SETTINGS, write_words
from tests.support.training.small_run import stop_after, weights_hash
from training.checkpoint.files import read_facts
from training.checkpoint.opened import load_checkpoint
from training.data.dataset import SPLITS, Dataset, DatasetMeta
from training.data.meta import Period
from training.evaluation.scoring import popularity
from training.prepare.writing import write_dataset
from training.recipe.loading import load_recipe
from training.run import train
from training.trainer import Stopped

CLICKS = ["clicks.sampling=1", "clicks.loss=0.5", "clicks.popularity=1", "clicks.exposed_negatives=2"]
SELECTED = "validation.metrics=[wP@1, wR@10]"
LIMIT = "batching.positives=2"  # less than the positives of a query, so that sampling makes a difference
METRICS = ("wP@1", "wP@5", "wR@10")
PERIOD = Period(first_day="2026-09-01", last_day="2026-10-20", validation_from="2026-10-10", test_from="2026-10-15")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_words(tmp_path_factory.mktemp("plain") / "dataset")


@pytest.fixture(scope="module")
def clicked(plain: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The words dataset as a click log gives it: weights, days, exposures, some test queries of the training split."""
    draw, tables = np.random.default_rng(3), {}
    known = plain.split("train").texts
    for name in SPLITS:
        split = plain.split(name)
        weight_V = np.ceil(draw.pareto(1.0, len(split.labels.values)) * 3 + 0.01).astype(np.float32)
        table = split.table().append_column("weights", split.labels.to_arrow(weight_V))
        if name != "train":
            texts = [known[row].upper() if row % 4 == 0 else text for row, text in enumerate(split.texts)]
            table = table.set_column(1, "text", pa.array(texts))
        tables[name] = table
    days = np.datetime64("2026-09-01") + draw.integers(0, 49, plain.n_labels)
    labels = plain.label_table.append_column("first_seen", pa.array(days.astype("datetime64[D]")))
    row, label = np.divmod(draw.choice(400 * plain.n_labels, 2000, replace=False), plain.n_labels)
    shown = {"split": ["train"] * 2000, "query": [known[one] for one in row], "row": row.astype(np.int32)}
    exposures = pa.table(shown | {"label": label.astype(np.int32), "impressions": draw.integers(1, 50, 2000)})
    folder = tmp_path_factory.mktemp("clicked") / "dataset"
    return write_dataset(folder, labels, tables, DatasetMeta(name="clicks", period=PERIOD), exposures=exposures)


@pytest.fixture(scope="module")
def trained(clicked: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder that `diptych train` made with all keys for clicks, selected by click-weighted metrics."""
    out = tmp_path_factory.mktemp("trained") / "run"
    overrides = [word for setting in [*SETTINGS, *CLICKS, SELECTED, LIMIT] for word in ("--set", setting)]
    assert run("train", "--dataset", clicked.folder, "--out", out, *overrides) == 0
    return out


def trained_weights(dataset: Dataset, folder: Path, *overrides: str) -> str:
    # One validation, so that the weights are those of the last epoch for any metrics.
    recipe = load_recipe("default", [*SETTINGS, LIMIT, "optimizer.epochs=2", "validation.every_epochs=2", *overrides])
    train(dataset, recipe, folder, RecordingCallback())
    return weights_hash(folder)


def same_queries(clicked: Dataset, folder: Path) -> Dataset:
    """Write the same queries and labels without anything from clicks."""
    tables = {name: clicked.split(name).table().select(["id", "text", "labels", "exclude"]) for name in SPLITS}
    return write_dataset(folder, clicked.label_table, tables, DatasetMeta(name="clicks"))  # type: ignore[arg-type]


def test_clicks_change_the_weights_only_by_their_keys(clicked: Dataset, tmp_path: Path) -> None:
    """If this failed, a dataset with clicks would train to other weights at α = 0, or a key would have no effect."""
    keys = [key for key in CLICKS if "popularity" not in key]  # popularity is added to scores after training
    hashes = {key: trained_weights(clicked, tmp_path / key, key) for key in keys}
    at_zero = trained_weights(clicked, tmp_path / "zero")
    assert len({at_zero, *hashes.values()}) == len(keys) + 1
    trained_weights(same_queries(clicked, tmp_path / "plain"), tmp_path / "without")
    for file, added in (("model.safetensors", {"age"}), ("state.safetensors", set())):
        without, zero = (load_file(tmp_path / name / file) for name in ("without", "zero"))
        assert zero.keys() - without.keys() == added
        assert [name for name, tensor in without.items() if not torch.equal(tensor, zero[name])] == []


def test_a_resumed_run_with_clicks_ends_with_the_same_weights(clicked: Dataset, tmp_path: Path) -> None:
    """If this failed, a resumed run would sample other positives or exposures than an unbroken one."""
    whole = trained_weights(clicked, tmp_path / "whole", *CLICKS)
    recipe = load_recipe("default", [*SETTINGS, LIMIT, "optimizer.epochs=2", "validation.every_epochs=2", *CLICKS])
    for steps in (3, 8):
        with pytest.raises(Stopped):
            train(clicked, recipe, tmp_path / "stopped", RecordingCallback(), should_stop=stop_after(steps))
    assert trained_weights(clicked, tmp_path / "stopped", *CLICKS) == whole


def test_the_best_epoch_has_the_best_click_weighted_metrics(trained: Path) -> None:
    """If this failed, `validation.metrics` with wP@k would select by other metrics."""
    facts = read_facts(trained)
    for record in facts.history:
        mean = np.mean([record.metrics["unified"][name] for name in ("wP@1", "wR@10")])
        assert record.score <= mean + 1e-9, "distractors are never correct, so a score among them is at most the mean"
        assert record.score <= facts.best.score


def test_a_checkpoint_keeps_what_clicks_said_about_labels_and_queries(trained: Path, clicked: Dataset) -> None:
    """If this failed, export would serve another popularity than validation measured, or days would be attributes."""
    opened = load_checkpoint(trained)
    split = clicked.split("train")
    weights_L = np.bincount(split.labels.values, split.weights_V, clicked.n_labels)
    popularity_L = np.log1p(weights_L) / np.log1p(weights_L.max())
    np.testing.assert_allclose(popularity(opened.label_frequency_L), popularity_L, 1e-6)
    assert opened.labels.column_names == ["id", "text", "market"]
    assert opened.repeated_Q is not None
    assert opened.repeated_Q.sum() >= 30
    assert opened.validation.weights_V is not None


def test_a_bundle_is_exported_with_the_popularity_of_clicks(trained: Path, tmp_path: Path) -> None:
    """If this failed, a bundle would rank by another popularity than the checkpoint, or show days as attributes."""
    assert run("export", trained, "--store", tmp_path / "store", "--activate") == 0
    retriever, opened = open_bundle(tmp_path / "store"), load_checkpoint(trained)
    bonus_L = np.sqrt(opened.popularity) * popularity(opened.label_frequency_L)
    vectors_LC = classifier_vectors(opened, 0, opened.labels.num_rows)
    np.testing.assert_allclose(vectors_LC[:, -1], bonus_L, atol=1e-6)
    assert retriever.manifest.quality is not None
    best = retriever.manifest.quality.checkpoint
    assert best["P@1"] == pytest.approx(opened.metrics["unified"]["P@1"], abs=1e-6)
    assert retriever.labels.table.column_names == ["id", "text", "market"]


def test_every_report_has_click_weighted_metrics_and_the_new_groups(
    trained: Path, clicked: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    """If this failed, a user of click logs would not see the metrics and groups that depend on clicks and days."""
    record = read_facts(trained).best.metrics["unified"]
    page = (trained / "report.html").read_text()
    for name in METRICS:
        assert f"<th>{name}</th>" in page
        assert f"<td>{record[name]:.2f}</td>" in page
    for heading in ("By age of the label", "Repeated and new queries", "click-weighted precision"):
        assert heading in page
    drawn = EventAccumulator(str(trained / "tensorboard"), {"scalars": 0}).Reload().Tags()["scalars"]
    assert {f"validation_unified/{name}" for name in METRICS} <= set(drawn)
    assert run("evaluate", trained, "--dataset", clicked.folder, "--resamples", "100") == 0
    shown = capsys.readouterr().out
    assert max(len(line) for line in shown.splitlines() if str(trained) not in line) <= 80
    assert run("evaluate", trained, "--dataset", clicked.folder, "--resamples", "100", "--json") == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    for name in METRICS:
        assert any(
            line.split()[:1] == [name] and f"{result['estimates']['unified'][name]['value']:.2f}" in line
            for line in shown.splitlines()
        )
    known, queries = set(clicked.split("train").texts), clicked.split("test").texts
    repeated = sum(text.lower() in known for text in queries)
    assert 0 < repeated < len(queries)
    groups = result["query_history"]
    assert [groups[name]["queries"] for name in ("repeated", "new")] == [repeated, len(queries) - repeated]
    assert set(result["label_age"]) <= {"new", "1–6 days", "7–29 days", "30+ days", "unknown"}
    assert sum(group["metrics"]["P@5"] for group in result["label_age"].values()) == pytest.approx(
        result["metrics"]["unified"]["P@5"], abs=1e-4
    )
    rows = [line.split()[0] for line in shown.splitlines() if line.strip()]
    assert "repeated" in rows
    assert "30+" in rows


def test_two_checkpoints_are_compared_by_clicks(
    trained: Path, clicked: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If this failed, a comparison would not show whether clicks help on repeated queries or new labels."""
    trained_weights(clicked, tmp_path / "other")
    options = ("--compare", tmp_path / "other", "--dataset", clicked.folder, "--resamples", "100")
    assert run("evaluate", trained, *options, "--json") == 0
    tested = [contrast["key"] for contrast in json.loads(capsys.readouterr().out)["contrasts"]]
    assert {(key["kind"], key["metric"]) for key in tested} >= {("head", name) for name in METRICS}
    assert {key["kind"] for key in tested} == {"head", "seen head", "labels", "ages", "queries", "history"}
    assert run("evaluate", trained, *options) == 0
    shown = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in shown if str(tmp_path.parent) not in line) <= 80
