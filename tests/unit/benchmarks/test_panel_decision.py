"""benchmarks/panel: the rule that accepts a change of the default recipe, scores with intervals, and the page."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.measuring.scoring import Scorer
from benchmarks.measuring.systems import RunResult, chosen_peers
from benchmarks.panel.decide import decide, mean_ranks
from benchmarks.panel.page import metrics_behind, panel_page
from benchmarks.panel.popularity import grid_results, held_out_metrics, mixes
from benchmarks.panel.results import PanelResults, read_results, write_results
from benchmarks.panel.scores import MeasuredSystem, score_dataset
from retrieval.errors import DatasetError, DiptychError
from tests.support.training.tiny_dataset import make_tiny
from training.checkpoint.opened import load_checkpoint
from training.data.dataset import Dataset
from training.data.ragged import Ragged
from training.data.split import Split
from training.evaluation.headline import KEY_METRICS
from training.evaluation.results import EvaluationData
from training.evaluation.scoring import ScoreMix


def constant(value: float) -> dict[str, float]:
    return dict.fromkeys(KEY_METRICS, value)


def panel(**values: tuple[float, ...]) -> dict[str, dict[str, dict[str, float]]]:
    """Values by dataset: those of `base`, `a` and `b`, the same for all metrics."""
    return {name: dict(zip(("base", "a", "b"), map(constant, of), strict=False)) for name, of in values.items()}


@pytest.fixture
def tiny(tmp_path: Path) -> Dataset:
    """Seven queries; one test label has no training positive."""
    return make_tiny(tmp_path)


def test_a_candidate_that_is_better_everywhere_wins() -> None:
    """If it fails, no change of the recipe is ever accepted."""
    decision = decide(panel(x=(50, 51), y=(20, 22), z=(30, 30.5)), "base", ["a"])
    assert decision.winner == "a"
    assert decision.verdicts["a"].worst == ("z", 0.5)
    assert decision.held_out == {"x": ("a", 1.0), "y": ("a", 2.0), "z": ("a", 0.5)}


def test_a_large_loss_on_one_dataset_outweighs_a_better_mean_rank() -> None:
    """If it fails, a recipe is tuned to most datasets at the cost of one."""
    decision = decide(panel(w=(50, 60), x=(50, 60), y=(20, 30), z=(30, 28)), "base", ["a"])
    assert decision.winner == "base"
    assert decision.verdicts["a"].mean_rank < decision.verdicts["base"].mean_rank
    assert decision.verdicts["a"].reason == "loses 2.00 points on z"


def test_a_gain_that_one_dataset_decides_is_not_accepted() -> None:
    """If it fails, a single dataset selects the recipe."""
    decision = decide(panel(x=(50, 60), y=(20, 20), z=(30, 30)), "base", ["a"])
    assert decision.winner == "base"
    assert decision.verdicts["a"].reason == "its mean rank is not better without x"


def test_the_best_mean_rank_of_the_accepted_candidates_wins() -> None:
    """If it fails, the first candidate of a grid is taken."""
    assert decide(panel(x=(50, 51, 52), y=(20, 21, 22)), "base", ["a", "b"]).winner == "b"


def test_equal_values_share_their_rank() -> None:
    """If it fails, the order of the arguments decides."""
    values = panel(x=(50, 50, 40))
    assert mean_ranks(values, ["base", "a", "b"]) == {"base": 1.5, "a": 1.5, "b": 3.0}


def test_one_dataset_or_a_missing_recipe_decides_nothing() -> None:
    """If it fails, a single dataset changes the default, or a recipe is compared on fewer datasets."""
    with pytest.raises(DatasetError, match="at least two"):
        decide(panel(x=(50, 51)), "base", ["a"])
    with pytest.raises(DatasetError, match="y has no validation metrics of a"):
        decide(panel(x=(50, 51), y=(50,)), "base", ["a"])


def run_of(title: str, answers: list[list[int]], seed: int | None = None) -> RunResult:
    return RunResult(
        title, seed, {"unified": answers}, {"unified": answers}, {"train_cpu_seconds": 2.0, "peak_mib": None}
    )


def test_scores_have_intervals_differences_and_seen_labels(tiny: Dataset) -> None:
    """If it fails, seeds are not averaged, or unseen labels count among the seen ones."""
    shoes, parkas = (tiny.label_texts.index(text) for text in ("running shoes", "parkas"))
    scorer = Scorer(tiny, 0.55, 1.5)
    both, first = [[shoes], [parkas]], [[shoes], []]
    ours = MeasuredSystem(
        "ours", True, (run_of("ours", both, 0), run_of("ours", first, 1)), (constant(40), constant(60))
    )
    scores = score_dataset(scorer, [ours, MeasuredSystem("peer", False, (run_of("peer", first),))])
    assert scores.systems["ours"].figures["all"]["P@1"].value == 75.0
    assert scores.systems["peer"].behind["all"]["P@1"].value == 25.0
    assert scores.systems["ours"].behind == {}
    assert scores.systems["ours"].validation == constant(50)
    assert scores.systems["ours"].cost == {"train_cpu_seconds": 2.0, "peak_mib": None}
    assert scores.seen_positives == 50.0, "parkas have a validation positive only"
    assert {of.figures["seen"]["P@1"].value for of in scores.systems.values()} == {100.0}
    assert metrics_behind(scores, "all") == []


def test_the_page_shows_written_results_and_failures(tiny: Dataset, tmp_path: Path) -> None:
    """If it fails, results are lost between runs, or a system that failed disappears without a reason."""
    scorer = Scorer(tiny, 0.55, 1.5)
    shoes, parkas = (tiny.label_texts.index(text) for text in ("running shoes", "parkas"))
    systems = [
        MeasuredSystem("ours", True, (run_of("ours", [[shoes], []], 0),), (constant(40),)),
        MeasuredSystem("peer", False, (run_of("peer", [[shoes], [parkas]]),)),
    ]
    datasets, failures = (
        {"emoji": score_dataset(scorer, systems)},
        {"emoji": {"slow": "no memory"}, "gone": {"gone": "no file"}},
    )
    results = PanelResults(command="quality", threads=1, datasets=datasets, failures=failures)
    write_results(results, tmp_path / "panel.json")
    read = read_results(tmp_path / "panel.json")
    assert read == results
    page = panel_page(read)
    assert "on 0 of 1 datasets" in page
    assert "- emoji: behind on P@1 (peer +50.0)" in page
    assert "| ours − peer | -50.0 (" in page
    assert "- slow: no result. no memory" in page
    assert "- gone, gone: no result. no file" in page
    assert "Labels with training positives only:" in page


def test_a_grid_is_measured_on_queries_that_did_not_select() -> None:
    """If it fails, a wider grid always looks at least as good as a narrow one."""
    narrow, wide = ScoreMix(0.5, 0.0), ScoreMix(0.5, 0.7)
    labels = Ragged.from_lists([[0], [1], [0], [1]])
    queries = Split.from_lists(list("abcd"), list("abcd"), labels, Ragged.empty(4))
    data = EvaluationData(queries, np.array([2, 2]), np.ones(2))
    # The wide mix is right for the even queries only, the narrow one for the odd ones.
    rankings = {narrow: np.array([[1], [1], [1], [1]]), wide: np.array([[0], [0], [0], [0]])}
    assert held_out_metrics(rankings, data, ("P@1",))["P@1"] == 0.0
    assert held_out_metrics({narrow: rankings[narrow]}, data, ("P@1",))["P@1"] == 50.0


def test_grids_contain_the_bonuses_of_the_recipe_and_end_at_the_highest(checkpoint: Path, dataset_folder: Path) -> None:
    """If it fails, a grid is compared with a mix that it does not contain."""
    opened = load_checkpoint(checkpoint)
    bonuses = {mix.popularity for mix in mixes(opened, 0.6)}
    assert bonuses >= set(opened.recipe.validation.popularities)
    assert 0.5 < max(bonuses) <= 0.6, "steps of 0.1"
    results = grid_results(checkpoint, Dataset.open(dataset_folder), [0.1, 0.6])
    assert all(of.mix.popularity <= highest for highest, of in results.items())
    assert all(0 <= of.test["P@1"] <= 100 for of in results.values())


def test_unreadable_results_are_one_sentence(tmp_path: Path) -> None:
    """If it fails, results of another version end in a traceback."""
    (tmp_path / "panel.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DatasetError, match="cannot be read as panel results"):
        read_results(tmp_path / "panel.json")


def test_a_peer_that_needs_a_model_runs_only_with_one(tmp_path: Path) -> None:
    """If it fails, a run without a model starts a download, or ends in a traceback of the peer."""
    assert "xr-transformer" not in {peer.name for peer in chosen_peers(None, None)}
    with pytest.raises(DiptychError, match="Give its folder with --model"):
        chosen_peers(["xr-transformer"], None)
    (peer,) = chosen_peers(["xr-transformer"], tmp_path)
    assert peer.settings["model"] == str(tmp_path)
    assert np.isclose(peer.settings["matcher"]["learning_rate"], 1e-4)
