"""The commands in benchmarks/, each run to its end on tiny data."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.measuring.systems import RecipeRun
from benchmarks.pairs_per_second import draw, looked_at, run
from benchmarks.peers.watched_steps import StepTask
from tests.support.bundles import WORDS
from tests.support.checkpoints import write_words
from tests.support.pretrained import save_tiny_bert
from tests.support.tiny_dataset import ROWS, make_tiny
from training.data.dataset import Dataset
from training.prepare.prepare import PrepareSettings, prepare

ROOT = Path(__file__).resolve().parents[2]
OURS = [sys.executable, "-m", "benchmarks.measuring.pairs_process"]


@pytest.fixture
def tiny(tmp_path: Path) -> Dataset:
    """Seven queries; the first test query excludes one of the labels its neighbours have."""
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


def test_a_finished_command_makes_its_report_again_without_training(tiny: Dataset, tmp_path: Path) -> None:
    """An interrupted evening of runs would begin anew, or a table could not be made again from what was kept."""
    out = tmp_path / "runs"
    command = [sys.executable, str(ROOT / "benchmarks" / "quality.py"), str(tiny.folder), "--out", str(out)]
    command += ["--recipe", "default:optimizer.epochs=1", "--seeds", "1", "--peers", "--threads", "1"]
    subprocess.run(command, check=True, capture_output=True)
    report = (out / "report.md").read_text(encoding="utf-8")
    trained = {path: path.stat().st_mtime_ns for path in out.glob("*seed0/**/*") if path.is_file()}
    (out / "report.md").unlink()
    subprocess.run(command, check=True, capture_output=True)
    assert (out / "report.md").read_text(encoding="utf-8") == report
    assert {path: path.stat().st_mtime_ns for path in trained} == trained
    assert "| seed | head |" in report, "each head beside the unified model"
    assert "unified − classifier" in report, "paired gaps"
    assert "Peers" not in report
    kept = json.loads((out / "report.json").read_text(encoding="utf-8"))["systems"]["default optimizer.epochs=1"][0]
    assert kept["cost"]["peak_mib"] > 10
    assert kept["cost"]["wall_seconds"] >= kept["cost"]["train_seconds"] > 0


def test_a_recipe_that_does_not_exist_is_one_sentence(tiny: Dataset, tmp_path: Path) -> None:
    """A typo would show a traceback, or be met only after other systems have run."""
    command = [sys.executable, str(ROOT / "benchmarks" / "quality.py"), str(tiny.folder), "--out", str(tmp_path / "x")]
    ended = subprocess.run([*command, "--recipe", "defualt"], check=False, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: recipe 'defualt'")
    assert not (tmp_path / "x").exists()


def test_what_could_never_be_measured_is_refused_before_the_long_part(tmp_path: Path) -> None:
    """Hours of training would end in a division by zero, or a typo in a traceback."""
    source = tmp_path / "tiny.jsonl"
    source.write_text(
        "".join(json.dumps(row | {"split": row["split"].replace("test", "train")}) + "\n" for row in ROWS)
    )
    prepare(source, tmp_path / "dataset", PrepareSettings())
    command = [sys.executable, str(ROOT / "benchmarks" / "quality.py"), str(tmp_path / "dataset"), "--out"]
    ended = subprocess.run([*command, str(tmp_path / "x")], check=False, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "the split 'test' has no query with a true label" in ended.stderr
    assert not list(tmp_path.glob("x/*seed*"))
    none = subprocess.run([*command, "x", "--seeds", "0"], check=False, capture_output=True, text=True)
    assert none.returncode == 2
    assert "argument --seeds: invalid count value: '0'" in none.stderr


def test_the_dial_is_drawn_from_finished_runs(tiny: Dataset, tmp_path: Path) -> None:
    """The picture of the three objectives could not be made again, or would leave one of them out."""
    out, svg = tmp_path / "runs", tmp_path / "pictures" / "dial.svg"
    source = tiny.folder.parent / "tiny.jsonl"
    draw_dial = [sys.executable, str(ROOT / "benchmarks" / "dial.py"), str(out), "--svg", str(svg)]
    objectives = ["default", "default:objective=precision", "default:objective=tail"]
    measure_them = [sys.executable, str(ROOT / "benchmarks" / "quality.py"), str(source), "--out", str(out)]
    measure_them += ["--recipe", *objectives, "--seeds", "1", "--peers", "--threads", "1"]
    subprocess.run(measure_them, check=True, capture_output=True)
    subprocess.run(draw_dial, check=True, capture_output=True)
    assert svg.read_text(encoding="utf-8").count("<path") > 10
    shutil.rmtree(out / RecipeRun(objectives[2], 0).folder)
    missing = subprocess.run(draw_dial, check=False, capture_output=True, text=True)
    assert missing.returncode == 1
    assert missing.stderr.startswith("error: ")
    assert "objective" in missing.stderr, "which run is missing"


def test_the_page_holds_every_system_claim_and_cost_that_was_run(words: Dataset, tmp_path: Path) -> None:
    """If this failed, the findings could not be made again by the command that stands in them."""
    out = tmp_path / "runs"
    chosen = ["UniDEC DS / DS+BCE", "POL instead of PSL", "NGAME", "DePSL, pool ≤ L/30", "DEXML-full", "Renee"]
    command = [sys.executable, str(ROOT / "benchmarks" / "findings.py"), str(words.folder), "--out", str(out)]
    command += ["--epochs", "1", "--threads", "1", "--systems"]
    subprocess.run([*command, *chosen], check=True, capture_output=True)
    page = (out / "findings.md").read_text(encoding="utf-8")
    assert all(f"| {name} |" in page for name in chosen)
    assert "PSL is better than POL" in page
    assert "Mined negatives" not in page, "one of its systems was not run"
    assert "of the whole space's" in page
    alone = subprocess.run([*command, "Renee"], check=False, capture_output=True, text=True)
    assert alone.returncode == 1
    assert "begins with the encoder of 'NGAME'" in alone.stderr


@pytest.mark.parametrize(("dataset", "wrong"), [("no", "is not a prepared dataset"), ("words", "no such folder")])
def test_a_mistyped_folder_is_one_sentence_before_anything_is_installed(
    words: Dataset, tmp_path: Path, dataset: str, wrong: str
) -> None:
    """If this failed, a mistyped folder would be found after a long installation, or end in a traceback."""
    command = [sys.executable, str(ROOT / "benchmarks" / "pairs_per_second.py"), str(tmp_path / dataset)]
    command += ["--model", str(tmp_path / "no"), "--environments", str(tmp_path / "environments"), "--batch", "8"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ")
    assert wrong in ended.stderr
    assert not (tmp_path / "environments").exists()


def test_our_side_takes_the_steps_of_the_task(words: Dataset, task: StepTask, tmp_path: Path) -> None:
    """If this failed, our figures would not be those of our trainer's own steps."""
    drawn = draw(words, task, tmp_path)
    task.write(tmp_path)
    taken = run("ours", OURS, tmp_path)
    assert taken.pairs == 3 * 16
    assert 16 * 3 < taken.texts <= 2 * 16 * 3  # a label that several queries of a batch share is computed once
    assert taken.tokens >= taken.texts * 4  # two words or three, and two special tokens
    assert taken.versions["torch"] == torch.__version__
    assert looked_at(words, drawn, task).tokens_per_pair > 2 * 4
