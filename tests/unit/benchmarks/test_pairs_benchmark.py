"""benchmarks/pairs_per_second.py: both sides train on the same pairs in alternation; only measured steps count."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.measuring.pairs_process import recipe_of
from benchmarks.pairs_per_second import PairsRound, TokenizationCost, alternate, draw_pairs, run, table
from benchmarks.peers.watched_steps import StepRecorder, StepTask
from retrieval.errors import BadInput, DiptychError
from tests.support.bundles import WORDS
from tests.support.training.checkpoints import write_words
from tests.support.training.pretrained import save_tiny_bert
from training.data.dataset import Dataset

OURS = [sys.executable, "-m", "benchmarks.measuring.pairs_process"]


@pytest.fixture
def words(tmp_path: Path) -> Dataset:
    """Word queries that have several labels each."""
    return write_words(tmp_path / "words")


@pytest.fixture
def task(tmp_path: Path) -> StepTask:
    """Four steps of 16 pairs, the last three measured, on an encoder of two layers."""
    bert = save_tiny_bert(tmp_path / "bert", WORDS)
    return StepTask(model=str(bert), max_tokens=8, batch=16, warm=1, steps=3, threads=1, seed=0)


def test_both_sides_get_the_same_true_pairs_one_per_query(words: Dataset, task: StepTask, tmp_path: Path) -> None:
    """If it fails, the sides train on different texts, or on pairs that are not positive."""
    drawn = draw_pairs(words, task, tmp_path)
    theirs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text("utf-8").splitlines()]
    ours, texts = Dataset.open(tmp_path / "dataset").split("train"), words.label_texts
    assert len(theirs) == 4 * 16
    assert theirs == [
        {"query": query, "positive": texts[label]} for query, (label,) in zip(ours.texts, ours.labels, strict=True)
    ]
    train = words.split("train")
    true = dict(zip(train.ids, train.labels, strict=True))
    assert all(label in true[name] for name, (label,) in zip(drawn.ids, drawn.labels, strict=True))


def test_only_the_measured_steps_count() -> None:
    """If it fails, slow first steps are part of the measured speed, or the work per step is too large."""
    watch, task = StepRecorder(), StepTask("bert", 8, 2, warm=2, steps=2, threads=1, seed=0)
    for rows in (9, 9, 3, 4, 9):
        watch.on_forward(None, (torch.zeros(rows, 5),))
        watch.step_ended()
    assert watch.total(task)["texts"] == 7
    assert watch.total(task)["tokens"] == 35


def test_sides_alternate_with_one_seed_per_round(task: StepTask, tmp_path: Path) -> None:
    """If it fails, other work on the machine slows only one side, or a round repeats the one before."""
    side = (
        "import json, sys; seed = json.load(open(sys.argv[1] + '/task.json'))['seed'];"
        "json.dump(dict(wall=1, cpu=1, texts=seed, tokens=1, versions={}), open(sys.argv[2], 'w'))"
    )
    lines: list[str] = []
    rounds = alternate(
        {key: [sys.executable, "-c", side] for key in ("ours", "theirs")}, task, tmp_path, 2, lines.append
    )
    assert [line.rsplit(", ", 1)[1] for line in lines] == ["ours", "theirs", "ours", "theirs"]
    assert {name: [one.texts for one in taken] for name, taken in rounds.items()} == {"ours": [0, 1], "theirs": [0, 1]}


def test_the_ratio_is_computed_per_round() -> None:
    """If it fails, other work during one round appears as a difference between the sides."""
    ours = [PairsRound(100, 1.0, 1.0, 190, 900, {}), PairsRound(100, 4.0, 1.0, 190, 900, {})]
    theirs = [PairsRound(100, 2.0, 2.0, 200, 1800, {}), PairsRound(100, 8.0, 2.0, 200, 1800, {})]
    rows = table({"ours": ours, "theirs": theirs}, TokenizationCost("words", 8.0, 0.01))
    assert rows[2] == "| pairs per second | 62 (25–100) | 31 (12–50) | 2.00 |"
    assert rows[4] == "| the same, with tokenizing for one epoch | 50 | 50 | 1.00 |"
    assert rows[6] == "| tokens encoded per pair, padding included | 9.0 | 18.0 | 0.50 |"


def test_our_side_is_dpr_in_float32(task: StepTask) -> None:
    """If it fails, the sides do different work."""
    recipe = recipe_of(task)
    assert (recipe.encoder.kind, recipe.encoder.max_tokens, recipe.precision) == ("transformer", 8, "float32")
    assert (recipe.batching.positives, recipe.batching.hard_negatives, recipe.batching.batch_size) == (1, 0, 16)
    assert (recipe.loss.dual_encoder_share, recipe.loss.dual_encoder.query_to_label) == (1.0, 1.0)


def test_too_few_queries_are_refused(words: Dataset, task: StepTask, tmp_path: Path) -> None:
    """If it fails, pairs are used twice, or our side validates during the measured steps."""
    with pytest.raises(BadInput, match="smaller --batch"):
        draw_pairs(words, replace(task, batch=256), tmp_path)


def test_a_side_that_fails_is_one_sentence(words: Dataset, task: StepTask, tmp_path: Path) -> None:
    """If it fails, the user sees only a traceback of the other library."""
    draw_pairs(words, task, tmp_path)
    replace(task, model=str(tmp_path / "no")).write(tmp_path)
    with pytest.raises(DiptychError, match=r"^ours could not be measured: encoder.model '.*no such folder"):
        run("ours", OURS, tmp_path)
    with pytest.raises(DiptychError, match="ended with code 3"):
        run("ours", [sys.executable, "-c", "raise SystemExit(3)"], tmp_path)
