"""The programs in benchmarks/, each run to its end on tiny data."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from benchmarks import dial, findings, pairs_per_second, quality
from benchmarks.cascade import compare
from benchmarks.measuring.systems import RecipeRun
from benchmarks.pairs_per_second import draw_pairs, run, tokenization_cost
from benchmarks.peers.watched_steps import StepTask
from tests.support.bundles import WORDS
from tests.support.training.checkpoints import write_words
from tests.support.training.pretrained import save_tiny_bert
from tests.support.training.tiny_dataset import ROWS, make_tiny
from training.data.dataset import Dataset
from training.prepare.prepare import prepare
from training.prepare.settings import PrepareSettings

Command = Callable[..., int]
OURS = [sys.executable, "-m", "benchmarks.measuring.pairs_process"]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """Function that runs a benchmark program in this process, which has imported torch; it returns the exit code."""

    def call(module: ModuleType, *arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        try:
            return int(module.main())
        except SystemExit as ended:  # argparse
            return int(ended.code or 0)

    return call


@pytest.fixture
def tiny(tmp_path: Path) -> Dataset:
    """Seven queries; the first test query excludes a label of its nearest training queries."""
    return make_tiny(tmp_path)


@pytest.fixture
def words(tmp_path: Path) -> Dataset:
    """Word queries that have several labels each."""
    return write_words(tmp_path / "words")


@pytest.fixture
def task(tmp_path: Path) -> StepTask:
    """Four steps of 16 pairs, the last three measured, on an encoder of two layers."""
    bert = save_tiny_bert(tmp_path / "bert", WORDS)
    return StepTask(model=str(bert), max_tokens=8, batch=16, warm=1, steps=3, threads=1, seed=0)


def test_a_finished_command_makes_its_report_again_without_training(
    tiny: Dataset, tmp_path: Path, command: Command
) -> None:
    """If it fails, a rerun trains again, or a report cannot be written from finished runs."""
    out = tmp_path / "runs"
    arguments = [tiny.folder, "--out", out, "--recipe", "default:optimizer.epochs=1", "--seeds", 1, "--peers"]
    assert command(quality, *arguments, "--threads", 1) == 0
    report = (out / "report.md").read_text(encoding="utf-8")
    trained = {path: path.stat().st_mtime_ns for path in out.glob("*seed0/**/*") if path.is_file()}
    (out / "report.md").unlink()
    assert command(quality, *arguments, "--threads", 1) == 0
    assert (out / "report.md").read_text(encoding="utf-8") == report
    assert {path: path.stat().st_mtime_ns for path in trained} == trained
    assert "| seed | head |" in report, "each head and the unified model"
    assert "unified − classifier" in report, "paired gaps"
    assert "Peers" not in report
    saved = json.loads((out / "report.json").read_text(encoding="utf-8"))["systems"]["default optimizer.epochs=1"][0]
    assert saved["cost"]["peak_mib"] > 10
    assert saved["cost"]["wall_seconds"] >= saved["cost"]["train_seconds"] > 0


def test_an_unknown_recipe_is_refused_in_one_sentence(
    tiny: Dataset, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """If it fails, a typo ends in a traceback, or is reported only after other systems have run."""
    assert command(quality, tiny.folder, "--out", tmp_path / "x", "--recipe", "defualt") == 1
    assert capsys.readouterr().err.startswith("error: recipe 'defualt'")
    assert not (tmp_path / "x").exists()


def test_a_test_split_without_true_labels_is_refused_before_training(
    tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """If it fails, hours of training end in a division by zero, or a typo ends in a traceback."""
    source = tmp_path / "tiny.jsonl"
    source.write_text(
        "".join(json.dumps(row | {"split": row["split"].replace("test", "train")}) + "\n" for row in ROWS)
    )
    prepare(source, tmp_path / "dataset", PrepareSettings())
    assert command(quality, tmp_path / "dataset", "--out", tmp_path / "x") == 1
    assert "the split 'test' has no query with a true label" in capsys.readouterr().err
    assert not list(tmp_path.glob("x/*seed*"))
    assert command(quality, tmp_path / "dataset", "--out", tmp_path / "x", "--seeds", 0) == 2
    assert "argument --seeds: invalid count value: '0'" in capsys.readouterr().err


def test_the_dial_is_drawn_from_finished_runs(
    tiny: Dataset, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """If it fails, the plot of the three objectives cannot be made again, or lacks one of them."""
    out, svg = tmp_path / "runs", tmp_path / "pictures" / "dial.svg"
    objectives = ["default", "default:objective=precision", "default:objective=tail"]
    source = tiny.folder.parent / "tiny.jsonl"
    options = ["--recipe", *objectives, "--seeds", 1, "--peers", "--threads", 1]
    assert command(quality, source, "--out", out, *options) == 0
    assert command(dial, out, "--svg", svg) == 0
    assert svg.read_text(encoding="utf-8").count("<path") > 10
    shutil.rmtree(out / RecipeRun(objectives[2], 0).folder)
    capsys.readouterr()
    assert command(dial, out, "--svg", svg) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "objective" in error, "which run is missing"


def test_the_page_has_every_system_claim_and_cost_that_was_run(
    words: Dataset, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """If it fails, the command on the page does not reproduce the findings."""
    out = tmp_path / "runs"
    chosen = ["UniDEC DS / DS+BCE", "POL instead of PSL", "NGAME", "DePSL, pool ≤ L/30", "DePSL, all labels", "Renee"]
    arguments = [words.folder, "--out", out, "--epochs", 1, "--threads", 1, "--systems"]
    assert command(findings, *arguments, *chosen) == 0
    page = (out / "findings.md").read_text(encoding="utf-8")
    assert all(f"| {name} |" in page for name in chosen)
    assert "PSL is better than POL" in page
    assert "Mined negatives" not in page, "one of its systems was not run"
    assert "of that with all labels" in page
    assert command(findings, *arguments, "Renee") == 1
    assert "begins with the encoder of 'NGAME'" in capsys.readouterr().err


@pytest.mark.parametrize(("dataset", "wrong"), [("no", "is not a prepared dataset"), ("words", "no such folder")])
def test_a_mistyped_folder_is_refused_before_anything_is_installed(
    words: Dataset, tmp_path: Path, dataset: str, wrong: str, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """If it fails, a mistyped folder is reported after a long installation, or ends in a traceback."""
    options = ["--model", tmp_path / "no", "--environments", tmp_path / "environments", "--batch", 8]
    assert command(pairs_per_second, tmp_path / dataset, *options) == 1
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: ")
    assert wrong in error
    assert not (tmp_path / "environments").exists()


def test_our_side_takes_the_steps_of_the_task(words: Dataset, task: StepTask, tmp_path: Path) -> None:
    """If it fails, our measurements are not those of the trainer's steps."""
    drawn = draw_pairs(words, task, tmp_path)
    task.write(tmp_path)
    result = run("ours", OURS, tmp_path)
    assert result.pairs == 3 * 16
    assert 16 * 3 < result.texts <= 2 * 16 * 3  # a label that several queries of a batch share is computed once
    assert result.tokens >= result.texts * 4  # two words or three, and two special tokens
    assert result.versions["torch"] == torch.__version__
    assert tokenization_cost(words, drawn, task).tokens_per_pair > 2 * 4


def test_the_cascades_are_compared_and_rerunning_only_renders(words: Dataset, tmp_path: Path, command: Command) -> None:
    """If it fails, the command on the page does not reproduce it, or trains again."""
    bert, out = save_tiny_bert(tmp_path / "bert", WORDS, layers=6), tmp_path / "runs"
    arguments = [words.folder, "--model", bert, "--out", out, "--epochs", 1, "--set", "encoder.max_tokens=8"]
    assert command(compare, *arguments, "--finished-only") == 0
    assert "| cascade |" not in (out / "cascade.md").read_text(encoding="utf-8")
    assert command(compare, *arguments) == 0
    page = (out / "cascade.md").read_text(encoding="utf-8")
    assert page.count("| last layer for all levels |") == 3, "metrics, metrics among seen labels, and recall"
    assert "| cascade − last layer for all levels | all labels | p |" in page
    assert "| cascade − two levels | all labels | p |" in page
    assert "| two levels | 100.0 (100.0) | – | – | 100.0 (100.0) |" in page, "16 clusters, all of them kept"
    trained = {path: path.stat().st_mtime_ns for path in out.glob("**/*.safetensors")}
    assert len(trained) == 6
    assert command(compare, *arguments, "--finished-only") == 0
    assert (out / "cascade.md").read_text(encoding="utf-8") == page
    assert {path: path.stat().st_mtime_ns for path in trained} == trained
