"""benchmarks/findings.py: claims are checked with paired differences."""

from pathlib import Path

import pytest

from benchmarks.measuring.claims import CLAIMS, WARM, Claim, findings, systems, verdict
from benchmarks.measuring.scoring import Scorer
from benchmarks.measuring.systems import RecipeRun, RunResult
from tests.support.bundles import label_texts
from tests.support.training.checkpoints import write_words
from training.data.dataset import Dataset
from training.evaluation.significance import Estimate


@pytest.fixture
def words(tmp_path: Path) -> Dataset:
    """Word queries whose labels share two words with them."""
    return write_words(tmp_path / "dataset")


def test_every_claim_compares_systems_that_are_run() -> None:
    """If it fails, a misspelt name silently removes a claim from the page."""
    known = systems(1000)
    assert {name for claim in CLAIMS for name, _ in (claim.first, claim.second)} <= known.keys()
    assert set(WARM) | set(WARM.values()) <= known.keys()
    for spec in known.values():
        RecipeRun(spec, 0).check()


@pytest.mark.parametrize(
    ("difference", "expected", "result"),
    [
        (Estimate(1.0, 0.2, 1.8), "up", "holds"),
        (Estimate(-1.0, -1.8, -0.2), "up", "does not hold"),
        (Estimate(-1.0, -1.8, -0.2), "down", "holds"),
        (Estimate(1.0, -0.2, 2.2), "up", "not decided"),
        (Estimate(1.0), "up", "not decided"),
    ],
)
def test_a_claim_is_decided_only_if_the_interval_does_not_contain_zero(
    difference: Estimate, expected: str, result: str
) -> None:
    """If it fails, noise is reported as a finding, or a finding as its opposite."""
    assert verdict(difference, expected) == result


def test_a_claim_is_checked_per_query_over_the_mean_of_its_seeds(words: Dataset) -> None:
    """If it fails, one lucky seed decides, or the two systems are exchanged."""
    scorer = Scorer(words, 0.55, 1.5)
    truth = scorer.queries.labels
    right = [[int(truth[row][0])] for row in range(len(truth))]
    wrong = [[(int(truth[row][0]) + 1) % len(label_texts(300))] for row in range(len(truth))]
    some = [a if row % 2 else b for row, (a, b) in enumerate(zip(right, wrong, strict=True))]

    def run(name: str, seed: int, answers: list[list[int]]) -> RunResult:
        return RunResult(name, seed, {"unified": answers}, {"unified": answers}, {})

    runs = {
        "good": [run("good", seed, right) for seed in (0, 1)],
        "mixed": [
            run("mixed", 0, right),
            run("mixed", 1, some),
        ],
    }
    claim = Claim("", "", ("good", "unified"), ("mixed", "unified"), ("P@1",))
    (result,) = findings(claim, runs, scorer)
    wrong_once = sum(row % 2 == 0 and not set(wrong[row]) & set(truth[row].tolist()) for row in range(len(truth)))
    assert result.difference.value == pytest.approx(100 * wrong_once / 2 / len(truth))
    assert result.verdict == "holds"
