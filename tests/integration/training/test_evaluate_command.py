"""`diptych evaluate` on one checkpoint, and compared with one of another vocabulary, width and propensity."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.command import run
from tests.support.listener import RecordingCallback
from training.data.dataset import Dataset
from training.evaluation.checkpoint_evaluation import evaluate_checkpoint
from training.evaluation.results import SliceMetric
from training.recipe.loading import load_recipe
from training.run import train

OTHER = ["optimizer.epochs=1", "encoder.dim=32", "encoder.vocabulary_size=2000", "propensity.a=0.5"]


@pytest.fixture(scope="module")
def weaker(dataset_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One epoch of a smaller model on the same dataset."""
    folder = tmp_path_factory.mktemp("weaker") / "checkpoint"
    train(Dataset.open(dataset_folder), load_recipe("default", OTHER), folder, RecordingCallback())
    return folder


def output(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert run("evaluate", *arguments) == 0
    return capsys.readouterr().out


@pytest.fixture
def shown(checkpoint: Path, dataset_folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    return output(capsys, checkpoint, "--dataset", dataset_folder, "--worst", "2", "--resamples", "300")


@pytest.fixture
def facts(checkpoint: Path, dataset_folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    json_too = "--worst", "2", "--resamples", "300", "--json"
    return dict(json.loads(output(capsys, checkpoint, "--dataset", dataset_folder, *json_too)))


def test_the_screen_fits_80_columns_and_json_holds_what_it_shows(shown: str, facts: dict[str, Any]) -> None:
    """If it failed, a value on the screen would be missing from the JSON, or a table would be cut off."""
    assert max(map(len, shown.splitlines())) <= 80
    assert f"{facts['subject']['queries']:,} queries" in shown
    for metric, estimate in facts["estimates"]["unified"].items():
        row = next(line for line in shown.splitlines() if line.strip().startswith(metric))
        assert f"{estimate['value']:.2f} ±{(estimate['high'] - estimate['low']) / 2:.1f}" in row
        alone, minus = facts["metrics"]["classifier"][metric], facts["unified_minus"]["classifier"][metric]
        assert f"{alone:.2f}  ({minus['value']:+.1f} ±" in row
    for name, group in {**facts["label_frequency"], **facts["query_length"]}.items():
        row = next(line for line in shown.splitlines() if line.strip().startswith(name))
        assert f"{group['estimates']['R@10']['value']:.1f} ±" in row
    assert f"{facts['label_frequency']['tail']['labels']:,}" in shown
    assert len(facts["worst"]) == 2
    for number, example in enumerate(facts["worst"], 1):
        assert f"{number}. {example['query']}\n" in shown
        assert f"{example['answers'][0]['label']} ×{example['answers'][0]['positives']:,}" in " ".join(shown.split())
    assert "300 resamples, seed 0" in shown


def test_everything_is_shown_among_seen_labels_too(shown: str, facts: dict[str, Any]) -> None:
    """If it failed, a result that labels of test rows only explain would look like quality."""
    seen, title = facts["seen"], "Labels with training positives only"
    below = shown[shown.index(title) :]
    assert f"{seen['estimates']['unified']['P@1']['value']:.2f} ±" in below
    share = 1 - seen["true_labels"] / facts["true_labels"]
    assert 0 < share < 1
    assert f"({share:.1%} of the true labels)" in " ".join(below.split())
    assert set(seen["label_frequency"]) == {"head", "torso", "tail"}
    assert set(seen["query_length"]) <= set(facts["query_length"])
    assert set(seen["metrics"]) == set(seen["estimates"]) == {"unified", "dual_encoder", "classifier"}


def test_slices_add_up_and_intervals_contain_their_values(facts: dict[str, Any]) -> None:
    """If it failed, slices would be computed from other rankings than the totals."""
    parts = facts["label_frequency"]
    assert list(parts) == ["head", "torso", "tail", "unseen"]
    assert parts["unseen"]["max_positives"] == 0 < parts["tail"]["min_positives"]
    whole = facts["metrics"]["unified"]
    assert sum(part["metrics"]["P@5"] for part in parts.values()) == pytest.approx(whole["P@5"], abs=1e-4)
    lengths = facts["query_length"].values()
    assert sum(of["queries"] for of in lengths) == facts["subject"]["queries"]
    mean = np.average([of["metrics"]["R@10"] for of in lengths], weights=[of["queries"] for of in lengths])
    assert mean == pytest.approx(whole["R@10"], abs=1e-4)
    for of in facts["estimates"].values():
        assert all(estimate["low"] <= estimate["value"] <= estimate["high"] for estimate in of.values())


def test_the_better_checkpoint_is_named_with_its_slices(
    checkpoint: Path, weaker: Path, dataset_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If it failed, the comparison would name the weaker model, or not the slices on which it is weaker."""
    arguments = [checkpoint, "--dataset", dataset_folder, "--compare", weaker, "--worst", "1", "--resamples", "500"]
    facts, shown = json.loads(output(capsys, *arguments, "--json")), output(capsys, *arguments)
    assert max(map(len, shown.splitlines())) <= 80 + len(str(weaker))
    parts = {(one["key"]["name"], one["key"]["metric"]): one for one in facts["contrasts"]}
    assert {name for name, _ in parts} >= {"unified", "dual_encoder", "classifier", "tail", "unseen", "2 words"}
    unified = parts["unified", "P@5"]
    assert unified["better"] == "first"
    assert unified["difference"]["low"] > 0
    assert unified["p"] <= unified["p_corrected"] < 0.05
    assert "A is better on: unified P@1, P@5" in " ".join(shown.split())
    first, second = facts["first_behind"][0]
    assert first["query"] == second["query"]
    assert sum(of["hit"] for of in first["answers"]) < sum(of["hit"] for of in second["answers"])


def test_both_sides_are_scored_with_the_same_propensities(checkpoint: Path, weaker: Path, dataset_folder: Path) -> None:
    """If it failed, PSP of two recipes with other constants would be compared."""
    dataset = Dataset.open(dataset_folder)
    first = evaluate_checkpoint(checkpoint, dataset, "validation", weight=0.3)
    own, lent = (evaluate_checkpoint(weaker, dataset, "validation", propensities_of=by) for by in (None, first))
    assert own.propensity == (0.5, 1.5)
    assert lent.propensity == first.propensity == (0.55, 1.5)
    assert own.metrics["unified"]["PSP@5"] != pytest.approx(lent.metrics["unified"]["PSP@5"])
    for measured in (first, lent):
        ratio = measured.ratios[SliceMetric("head", "unified", "PSP@5")]
        assert ratio.percent == pytest.approx(measured.metrics["unified"]["PSP@5"])
    np.testing.assert_array_equal(
        first.ratios[SliceMetric("head", "unified", "PSP@5")].base_Q,
        lent.ratios[SliceMetric("head", "unified", "PSP@5")].base_Q,
    )


def test_another_weight_keeps_the_popularity_bonus(checkpoint: Path, dataset_folder: Path) -> None:
    """If it failed, `--weight` would measure other scores than the bundle gives at that weight."""
    dataset = Dataset.open(dataset_folder)
    chosen = evaluate_checkpoint(checkpoint, dataset, "validation")
    for weight, head in ((0.0, "dual_encoder"), (1.0, "classifier")):
        at_end = evaluate_checkpoint(checkpoint, dataset, "validation", weight=weight, memory_weight=0.0)
        assert at_end.mix.weight == weight
        assert at_end.metrics["unified"] == at_end.metrics[head] == pytest.approx(chosen.metrics[head])


def test_a_checkpoint_is_as_good_as_itself(
    checkpoint: Path, dataset_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If it failed, the test would find differences where there are none."""
    shown = output(
        capsys, checkpoint, "--dataset", dataset_folder, "--compare", checkpoint, "--split", "validation",
        "--weight", "0.2", "--resamples", "200",
    )  # fmt: skip
    assert "better on" not in shown
    assert "finds fewest" not in shown
    assert "classifier weight 0.2" in shown
    assert "validation" in shown


def test_a_checkpoint_of_another_dataset_is_an_error_of_one_sentence(
    checkpoint: Path, dataset_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If it failed, label rows of two different datasets would be compared."""
    facts = json.loads((checkpoint / "checkpoint.json").read_text())
    (tmp_path / "checkpoint.json").write_text(json.dumps({**facts, "dataset_fingerprint": "0" * 64}))
    assert run("evaluate", checkpoint, "--dataset", dataset_folder, "--compare", tmp_path) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {tmp_path} was trained on another dataset than {dataset_folder}")
