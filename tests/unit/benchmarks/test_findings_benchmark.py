"""benchmarks/findings.py: claims are judged by paired differences, and the page can be made again."""

from pathlib import Path

import pytest

from benchmarks.measuring.claims import CLAIMS, WARM, Claim, findings, systems, verdict
from benchmarks.measuring.scoring import Judge
from benchmarks.measuring.systems import Ran, RecipeRun
from tests.support.bundles import label_texts
from tests.support.checkpoints import write_words
from training.data.dataset import Dataset
from training.evaluation.significance import Estimate


@pytest.fixture
def words(tmp_path: Path) -> Dataset:
    """Word queries whose labels share two words with them."""
    return write_words(tmp_path / "dataset")


def test_every_claim_compares_systems_that_are_run() -> None:
    """If this failed, a misspelt name would leave a claim out of the page without a word."""
    known = systems(1000)
    assert {name for claim in CLAIMS for name, _ in (claim.first, claim.second)} <= known.keys()
    assert set(WARM) | set(WARM.values()) <= known.keys()
    for spec in known.values():
        RecipeRun(spec, 0).check()


@pytest.mark.parametrize(
    ("difference", "expected", "told"),
    [
        (Estimate(1.0, 0.2, 1.8), "up", "holds"),
        (Estimate(-1.0, -1.8, -0.2), "up", "does not hold"),
        (Estimate(-1.0, -1.8, -0.2), "down", "holds"),
        (Estimate(1.0, -0.2, 2.2), "up", "not decided"),
        (Estimate(1.0), "up", "not decided"),
    ],
)
def test_a_claim_holds_only_where_the_interval_leaves_zero_out(difference: Estimate, expected: str, told: str) -> None:
    """If this failed, noise would be told as a finding, or a finding as its opposite."""
    assert verdict(difference, expected) == told


def test_a_claim_is_judged_query_by_query_over_the_mean_of_its_seeds(words: Dataset) -> None:
    """If this failed, one lucky seed would decide, or the two systems would change places."""
    judge = Judge(words, 0.55, 1.5)
    truth = judge.asked.labels
    right = [[int(truth[row][0])] for row in range(len(truth))]
    wrong = [[(int(truth[row][0]) + 1) % len(label_texts(300))] for row in range(len(truth))]
    some = [a if row % 2 else b for row, (a, b) in enumerate(zip(right, wrong, strict=True))]
    runs = {
        "good": [Ran("good", seed, {"unified": right}, {}) for seed in (0, 1)],
        "mixed": [Ran("mixed", 0, {"unified": right}, {}), Ran("mixed", 1, {"unified": some}, {})],
    }
    claim = Claim("", "", ("good", "unified"), ("mixed", "unified"), ("P@1",))
    (found,) = findings(claim, runs, judge)
    wrong_once = sum(row % 2 == 0 and not set(wrong[row]) & set(truth[row].tolist()) for row in range(len(truth)))
    assert found.difference.value == pytest.approx(100 * wrong_once / 2 / len(truth))
    assert found.verdict == "holds"
