"""benchmarks/quality.py: all systems are scored equally, peers run in processes, reports are reproducible."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.measuring.plots import draw, spread
from benchmarks.measuring.recipe_process import ExactSearch
from benchmarks.measuring.scoring import Scorer, remove_excluded, write_task
from benchmarks.measuring.summary import ScoredRun, System
from benchmarks.measuring.systems import PEERS, RecipeRun, run_recipe
from benchmarks.measuring.tables import row, table
from retrieval import metrics
from retrieval.errors import DiptychError, RecipeError
from tests.support.training.tiny_dataset import make_tiny
from training.checkpoint.opened import load_checkpoint
from training.data.dataset import Dataset
from training.data.ragged import Ragged
from training.evaluation.checkpoint_evaluation import evaluate_checkpoint
from training.evaluation.significance import Estimate

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def tiny(tmp_path: Path) -> Dataset:
    """Seven queries; the first test query excludes a label of its nearest training queries."""
    return make_tiny(tmp_path)


def label_rows(dataset: Dataset, *texts: str) -> list[int]:
    return [dataset.label_texts.index(text) for text in texts]


def test_excluded_labels_are_removed_and_the_next_ones_move_up() -> None:
    """If it fails, excluded labels change the metrics of a peer."""
    exclude = Ragged.from_lists([[4, 2], [], [0]])
    ranking_QK = remove_excluded([[4, 7, 2, 1], [4, -1], []], exclude)
    assert ranking_QK[:, :3].tolist() == [[7, 1, -1], [4, -1, -1], [-1, -1, -1]]


def test_rankings_of_another_number_of_queries_are_refused() -> None:
    """If it fails, rankings of another dataset are scored with the wrong true labels."""
    with pytest.raises(ValueError, match="zip"):
        remove_excluded([[1], [2]], Ragged.empty(3))


@pytest.mark.parametrize("name", ["knn", "tfidf"])
def test_a_peer_runs_in_its_own_process_and_its_file_is_scored_without_the_excluded(
    name: str, tiny: Dataset, tmp_path: Path
) -> None:
    """If it fails, a peer's file cannot be scored, or an excluded label in it counts."""
    write_task(tiny, tmp_path / "task")
    peer, out = PEERS[name], tmp_path / "out"
    out.mkdir()
    command = [sys.executable, "-m", f"benchmarks.peers.{peer.module}", str(tmp_path / "task"), str(out)]
    subprocess.run([*command, json.dumps(peer.settings), "1"], cwd=ROOT, check=True)
    answers = json.loads((out / "rankings.json").read_text(encoding="utf-8"))["unified"]
    shoes, sneakers, parkas = label_rows(tiny, "running shoes", "sneakers", "parkas")
    assert answers[0][0] == shoes
    assert sneakers in answers[0], "peers do not know the excluded labels"
    assert answers[1][0] == parkas, "peers train on validation queries too"
    scorer = Scorer(tiny, 0.55, 1.5)
    assert sneakers not in remove_excluded(answers, scorer.queries.exclude)[0]
    figures = scorer.metrics(answers)
    assert figures["P@1"] == figures["R@10"] == 100.0
    assert scorer.metrics([[sneakers, shoes], [parkas]])["P@1"] == 100.0
    cost = json.loads((out / "cost.json").read_text(encoding="utf-8"))
    assert 10 < cost["peak_mib"] < 4000
    assert cost["train_seconds"] > 0
    assert cost["seconds_per_thousand"] > 0


def test_the_depth_of_a_query_includes_its_excluded_labels(tiny: Dataset, tmp_path: Path) -> None:
    """If it fails, a ranking without its excluded labels is shorter than the greatest k."""
    write_task(tiny, tmp_path / "task")
    with np.load(tmp_path / "task" / "positives.npz", allow_pickle=False) as arrays:
        assert arrays["depth_Q"].tolist() == [51, 50], "40 more, so that 10 seen labels remain"
        assert arrays["offsets"][-1] == len(arrays["values"]) == 7, "positives of train and validation"


def test_our_runs_are_scored_as_diptych_evaluate_scores_them(checkpoint: Path, dataset_folder: Path) -> None:
    """If it fails, the table and `diptych evaluate` show different metrics of one checkpoint."""
    dataset = Dataset.open(dataset_folder)
    opened = load_checkpoint(checkpoint)
    search = ExactSearch(opened, dataset)
    answers, seen = search.rankings(), search.rankings(opened.positives_L > 0)
    scorer = Scorer(dataset, opened.recipe.propensity.a, opened.recipe.propensity.b)
    np.testing.assert_allclose(scorer.inverse_propensity_L, opened.inverse_propensity_L)
    result = evaluate_checkpoint(checkpoint, dataset, "test").result
    assert result.seen is not None, "the dataset has labels without training positives"
    for head, expected in result.metrics.items():
        values, among_seen = scorer.metrics(answers[head]), scorer.seen_metrics(seen[head])
        assert {name: values[name] for name in expected} == pytest.approx(expected)
        assert {name: among_seen[name] for name in expected} == pytest.approx(result.seen.metrics[head])


def test_a_deeper_ranking_of_a_peer_is_restricted_to_seen_labels(tiny: Dataset) -> None:
    """If it fails, labels that only validation queries have push a peer's answers down among the seen labels."""
    scorer = Scorer(tiny, 0.55, 1.5)
    shoes, parkas = label_rows(tiny, "running shoes", "parkas")
    answers = [[parkas, shoes], [parkas, shoes]]
    assert scorer.metrics(answers)["P@1"] == 50.0
    assert scorer.ranking(answers, seen=True)[:, :2].tolist() == [[shoes, -1], [shoes, -1]]
    assert scorer.seen_metrics(answers)["P@1"] == 100.0, "the query whose only true label is unseen does not count"


def test_every_label_is_in_one_frequency_group(tiny: Dataset) -> None:
    """If it fails, the groups differ from those of `diptych evaluate`, or lack labels."""
    scorer = Scorer(tiny, 0.55, 1.5)
    groups = scorer.data.label_groups["labels"].values()
    assert sum(member_L.astype(int) for member_L in groups).tolist() == [1] * tiny.n_labels
    figures = scorer.metrics([label_rows(tiny, "running shoes"), []])
    assert figures["head R@10"] == 100.0
    assert figures["unseen R@10"] == 0.0, "parkas have a validation positive only"


def test_gaps_are_differences_of_the_metrics_paired_by_query(tiny: Dataset) -> None:
    """If it fails, a head looks useless, or the interval ignores that both have the same queries."""
    scorer = Scorer(tiny, 0.55, 1.5)
    (shoes, sneakers, parkas), nothing = label_rows(tiny, "running shoes", "sneakers", "parkas"), [[], []]
    both = [[sneakers, shoes], [parkas]]  # the sneakers are excluded
    gaps = scorer.gaps({"unified": both, "dual_encoder": [[shoes], []], "classifier": both}, (1, 5))
    assert gaps["dual_encoder"][1] == Estimate(50.0, 0.0, 100.0)
    assert gaps["dual_encoder"][5].value == scorer.metrics(both)["P@5"] - scorer.metrics([[shoes], []])["P@5"]
    assert gaps["classifier"] == dict.fromkeys((1, 5), Estimate(0.0, 0.0, 0.0))
    assert scorer.gaps({"unified": nothing}, (1, 5)) == {}, "a peer has no heads"


def test_a_recipe_takes_overrides_and_each_combination_has_its_folder() -> None:
    """If it fails, two settings share one folder, or a typo is reported only after other runs."""
    plain, other = RecipeRun("default", 1), RecipeRun("default:optimizer.epochs=2", 1)
    assert other.overrides == ["optimizer.epochs=2", "seed=1"]
    assert plain.folder != other.folder
    assert "/" not in RecipeRun("folder/mine.yaml:precision=float32", 0).folder
    other.check()
    with pytest.raises(RecipeError, match="epochz"):
        RecipeRun("default:optimizer.epochz=2", 0).check()
    with pytest.raises(RecipeError, match="--seeds"):
        RecipeRun("default:seed=2", 0).check()


def test_a_run_of_other_code_is_refused(tiny: Dataset, tmp_path: Path) -> None:
    """If it fails, results of older code are reported as results of the current code."""
    run = RecipeRun("default", 0)
    (tmp_path / "run.json").write_text(json.dumps({"code": "of last week"}), encoding="utf-8")
    with pytest.raises(DiptychError, match="has a run of other data, recipe or code"):
        run_recipe(run, tiny.folder, tiny.fingerprint, tmp_path, 1)


def run_of(seed: int, value: float) -> ScoredRun:
    figures = dict.fromkeys([f"{name}@{k}" for name in ("P", "PSP", "nDCG", "R", "C") for k in metrics.KS], value)
    cost = {"train_seconds": 10 * value, "peak_mib": None, "seconds_per_thousand": 0.5}
    by_head = {"unified": figures | {"head R@10": value, "tail R@10": value}}
    return ScoredRun(seed, by_head, {"unified": {"P@1": value + 1}}, cost, {})


def test_table_shows_median_and_spread_and_marks_the_best() -> None:
    """If it fails, a lucky seed represents a recipe, or the wrong system is marked as best."""
    ours = System("ours", True, (run_of(0, 40.0), run_of(1, 60.0), run_of(2, 50.0)))
    peer = System("peer", False, (run_of(0, 45.0),))
    lines = table([ours, peer])
    assert "| P@1 | **50.0 (40.0–60.0)** | 45.0 |" in lines
    assert table([ours, peer], seen=True)[2:] == ["| P@1 | **51.0 (41.0–61.0)** | 46.0 |"]
    assert "| training, s | 500.0 (400.0–600.0) | 450.0 |" in lines
    assert not any("peak memory" in line or "torso" in line for line in lines), "not measured"
    assert row("x", [None, ours.metric("P@1")], "{:.0f}", max) == ["| x | – | **50 (40–60)** |"]


def test_plots_are_reproducible_and_name_every_system(tmp_path: Path) -> None:
    """If it fails, equal data give different plots, or a system is missing from a plot."""
    systems = [System("ours", True, (run_of(0, 40.0),)), System("peer", False, (run_of(0, 45.0),))]
    names = draw("tiny", systems, tmp_path, "report")
    assert names == ["report-quality.svg", "report-frequency.svg", "report-time.svg"]
    first = [(tmp_path / name).read_bytes() for name in names]
    assert all(b">ours<" in picture and b">peer<" in picture for picture in first)
    draw("tiny", systems, tmp_path, "report")
    assert [(tmp_path / name).read_bytes() for name in names] == first


def test_names_of_points_do_not_overlap_and_stay_inside_their_panel() -> None:
    """If it fails, the names of many systems overlap, or leave the plot."""
    assert spread([0.2, 0.21, 0.9], 0.1) == pytest.approx([0.2, 0.3, 0.9])
    assert spread([0.95, 0.96, 1.0], 0.1) == pytest.approx([0.8, 0.9, 1.0])
    assert spread([0.0, 0.0, 0.0, 1.0], 0.3) == pytest.approx([0.0, 0.3, 0.6, 1.0])
