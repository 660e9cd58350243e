"""Full disk, too little memory, divergence and changed data: one sentence, and nothing saved is lost."""

import hashlib
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from retrieval.errors import TrainingError
from tests.support.listener import RecordingCallback
from tests.support.processes import running, wait_for_file
from tests.support.training.checkpoints import write_words
from training.checkpoint.tensor_file import read_tensors
from training.data.dataset import Dataset, DatasetMeta
from training.monitoring.resource_errors import resource_errors
from training.prepare.writing import write_dataset
from training.recipe.loading import load_recipe
from training.run import train
from training.trainer import Stopped

ROOT = Path(__file__).parents[3]
PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
SMALL = [
    "optimizer.epochs=2",
    "validation.every_epochs=1",
    "encoder.dim=32",
    "encoder.vocabulary_size=64",
    "batching.batch_size=64",
]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_words(tmp_path_factory.mktemp("words") / "dataset").folder


@pytest.fixture(scope="module")
def begun_once(words: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped, and saved, after its first validation."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    steps = iter(range(1000))
    with pytest.raises(Stopped):
        train(
            Dataset.open(words),
            load_recipe("default", SMALL),
            folder,
            RecordingCallback(),
            should_stop=lambda: next(steps) >= 9,
        )
    assert (folder / "model.safetensors").is_file()
    return folder


@pytest.fixture
def begun(begun_once: Path, tmp_path: Path) -> Path:
    return shutil.copytree(begun_once, tmp_path / "run")


def saved(folder: Path) -> dict[str, str]:
    """Return a hash of each file that a run saves, without TensorBoard events."""
    files = ("state.safetensors", "model.safetensors", "labels.parquet", "tokenizer.json", "validation.parquet")
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files}


def command(dataset: Path, out: Path, *overrides: str) -> list[str]:
    words = [sys.executable, "-m", "diptych", "train", "--dataset", str(dataset), "--out", str(out)]
    return words + [word for override in overrides for word in ("--set", override)]


def told(arguments: list[str], **limits: object) -> str:
    """Run a failing command; return its error, which must be one line on stderr."""
    # coverage in the subprocess would fail on the full disk too, with a traceback
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    ended = subprocess.run(  # type: ignore[call-overload]
        arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, **limits
    )
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, ended.stderr
    assert ended.stderr.endswith(errors[0] + "\n"), ended.stderr
    return str(errors[0])


# What each file needs, a little less than that: the first tokens, the label table, the tokenizer and events, the state.
@pytest.mark.parametrize("most_bytes", [300, 3_000, 20_000, 60_000])
def test_a_full_disk_is_one_sentence_and_the_run_resumes_when_there_is_space(
    words: Path, tmp_path: Path, most_bytes: int
) -> None:
    """If it fails, a full disk ends in a traceback, or leaves an incomplete file that breaks the run."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    out = tmp_path / "run"
    sentence = told(command(words, out, *SMALL), preexec_fn=limit)
    assert "no space is left" in sentence
    assert str(out) in sentence
    assert "repeat the command" in sentence
    train(Dataset.open(words), load_recipe("default", SMALL), out, RecordingCallback())
    assert (out / "checkpoint.json").is_file()


def test_a_full_disk_keeps_what_was_saved(words: Path, begun: Path) -> None:
    """If it fails, a full disk loses hours of training."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    before = saved(begun)
    assert "no space is left" in told(command(words, begun, *SMALL), preexec_fn=limit)
    assert saved(begun) == before
    train(Dataset.open(words), load_recipe("default", SMALL), begun, RecordingCallback())


def test_a_deleted_folder_is_one_sentence(words: Path, tmp_path: Path) -> None:
    """If it fails, deleting the folder of a run ends in a traceback."""
    out = tmp_path / "run"

    def taken_away() -> bool:
        shutil.rmtree(out)
        return True  # and stop, which saves

    with pytest.raises(TrainingError, match=re.escape(f"{out} cannot be written to")), resource_errors(out):
        train(Dataset.open(words), load_recipe("default", SMALL), out, RecordingCallback(), should_stop=taken_away)


def test_too_little_memory_from_the_start_is_one_sentence(words: Path, tmp_path: Path) -> None:
    """If it fails, a model that does not fit into memory ends in a traceback of the allocator."""
    absurd = "heads.classifier.dim=1000000000000"
    sentence = told(command(words, tmp_path / "run", *SMALL, absurd))
    assert "the memory ran out" in sentence
    assert "batching.batch_size" in sentence


STARVED = """
import resource, sys
from pathlib import Path
import psutil
from retrieval.errors import DiptychError
from tests.support.listener import RecordingCallback
from training.monitoring.resource_errors import resource_errors
from training.data.dataset import Dataset
from training.recipe.loading import load_recipe
from training.run import train

def starve():
    held = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (held, held))
    return False

dataset, out, *overrides = sys.argv[1:]
try:
    with resource_errors(Path(out)):
        recipe = load_recipe("default", overrides)
        train(Dataset.open(dataset), recipe, Path(out), RecordingCallback(), should_stop=starve)
except DiptychError as error:
    print(error)
"""


def test_memory_that_runs_out_during_training_keeps_the_saved_state(words: Path, tmp_path: Path) -> None:
    """If it fails, a run that needs too much memory has no useful error or damages its state."""
    big = [*SMALL, "encoder.dim=2048", "heads.classifier.dim=30000", "encoder.pair_rows=100"]
    out = tmp_path / "run"
    with pytest.raises(Stopped):
        train(Dataset.open(words), load_recipe("default", big), out, RecordingCallback(), should_stop=lambda: True)
    before = (out / "state.safetensors").read_bytes()
    starved = subprocess.run(
        [sys.executable, "-c", STARVED, str(words), str(out), *big],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert "the memory ran out (the process holds" in starved.stdout, starved.stderr
    assert (out / "state.safetensors").read_bytes() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_that_is_too_small_is_one_sentence(words: Path, tmp_path: Path) -> None:
    """If it fails, CUDA's out-of-memory error ends in a traceback."""
    absurd = "heads.classifier.dim=100000000"
    sentence = told([*command(words, tmp_path / "run", *SMALL, absurd), "--device", "cuda"])
    assert "memory ran out" in sentence


def test_a_run_that_diverges_ends_and_keeps_the_saved_state(words: Path, tmp_path: Path) -> None:
    """If it fails, a diverged run replaces its last state with NaN and looks finished."""
    absurd = load_recipe("default", [*SMALL, "optimizer.weight_decay=1e18"])  # every step multiplies the heads by 1e15
    out = tmp_path / "run"
    with pytest.raises(Stopped):
        train(Dataset.open(words), absurd, out, RecordingCallback(), should_stop=lambda: True)
    with pytest.raises(TrainingError, match=r"(the loss is|contain NaN or Inf).*lower learning rates .*is kept\."):
        train(Dataset.open(words), absurd, out, RecordingCallback())
    tensors, facts = read_tensors(out / "state.safetensors")
    assert facts["steps_taken"] == 1
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert not (out / "checkpoint.json").exists()


def test_a_dataset_that_changed_since_the_checkpoint_is_one_sentence(words: Path, begun: Path, tmp_path: Path) -> None:
    """If it fails, a run resumes with other labels."""
    whole = Dataset.open(words)
    table = whole.label_table
    texts = table["text"].to_pylist()
    table = table.set_column(table.column_names.index("text"), "text", [["another word", *texts[1:]]])
    splits = {name: whole.split(name).table() for name in ("train", "validation", "test")}
    changed = write_dataset(tmp_path / "changed", table, splits, DatasetMeta(name="words"))  # type: ignore[arg-type]
    before = saved(begun)
    sentence = told(command(changed.folder, begun, *SMALL))
    assert f"the dataset is not the one of the run in {begun}" in sentence
    assert "--restart" in sentence
    assert saved(begun) == before


def test_ctrl_c_prints_the_command_that_resumes(words: Path, tmp_path: Path) -> None:
    """If it fails, the printed command does not resume, or has --restart and deletes the run."""
    out = tmp_path / "a run"  # a space, so that the command needs its quotes
    long = [*SMALL, "optimizer.epochs=400"]
    with running([*command(words, out, *long), "--restart"], cwd=ROOT, **PIPES) as first:
        wait_for_file(out / "model.safetensors", first)
        first.send_signal(signal.SIGINT)
        _, said = first.communicate(timeout=120)
    assert first.returncode == 130, said
    assert "Stopped and saved" in said
    given = said.splitlines()[-1].strip()
    assert given.startswith("diptych train ")
    assert "--restart" not in given
    _, facts = read_tensors(out / "state.safetensors")
    program = f"exec {shlex.quote(sys.executable)} -m diptych"
    with running(["sh", "-c", given.replace("diptych", program, 1)], cwd=ROOT, **PIPES) as again:
        line = again.stderr.readline() if again.stderr else ""
        again.send_signal(signal.SIGINT)
        again.communicate(timeout=120)
    assert f"epoch {len(facts['history']) + 1:>3}" in line, line
