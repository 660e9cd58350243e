"""SIGTERM at any stage of any command: it stops with code 143 and no traceback, and a rerun gives the same result."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from retrieval.open import open_store
from retrieval.store.local import Store
from tests.support.bundles import WORDS, make_store
from tests.support.command import run
from tests.support.listener import RecordingCallback
from tests.support.training.checkpoints import write_words
from tests.support.training.small_run import weights_hash
from training.data.dataset import Dataset
from training.recipe.loading import load_recipe
from training.run import train

ROOT = Path(__file__).parents[3]
DEADLINE = 60  # seconds; a command that does not stop would run for hours
SMALL = [
    "optimizer.epochs=2",
    "validation.every_epochs=1",
    "encoder.dim=32",
    "encoder.vocabulary_size=64",
    "batching.batch_size=64",
    "batching.clustered=true",
    "batching.hard_negatives=1",
]


@contextmanager
def at_stage(stage: str, words: Sequence[str | Path], how: str = "python") -> Iterator[subprocess.Popen[str]]:
    """Start a command that waits at a stage; yield its process when it is there."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    command = [sys.executable, "-m", "tests.support.programs.stopped_at", stage, how, *map(str, words)]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        try:
            assert running.stdout is not None
            assert any(line == "reached\n" for line in running.stdout), running.communicate()
            yield running
        finally:
            running.kill()


def stopped(stage: str, words: Sequence[str | Path], how: str = "python") -> str:
    """Send SIGTERM to a command at a stage; return its stderr."""
    with at_stage(stage, words, how) as running:
        running.send_signal(signal.SIGTERM)
        _, said = running.communicate(timeout=DEADLINE)
    assert running.returncode == 143, said
    assert "Traceback" not in said, said
    return said


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_words(tmp_path_factory.mktemp("words") / "dataset")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("store") / "store", "one")


@pytest.fixture(scope="module")
def checkpoint(words_checkpoint: Path) -> Path:
    return words_checkpoint


def train_words(dataset: Dataset, out: Path) -> list[str]:
    overrides = [word for override in SMALL for word in ("--set", override)]
    return ["train", "--dataset", str(dataset.folder), "--out", str(out), *overrides]


def test_training_stops_at_every_stage_and_ends_with_the_same_weights(words: Dataset, tmp_path: Path) -> None:
    """If it fails, a run that gets SIGTERM outside its steps continues for minutes, or ends with other weights."""
    out, command = tmp_path / "run", train_words(words, tmp_path / "run")
    stages = [
        ("training.batching.training_data:tokenize_cached", "python"),
        ("training.batching.batch_source:balanced_clusters", "python"),
        ("training.optim.training_step:head_loss", "python"),
        ("training.evaluation.validator:Validator.validate", "python"),
        # The best weights are written, but the saved state does not have their record.
        ("training.checkpoint.manager:CheckpointManager.save_if_best", "after"),
        ("training.reporting.report:render", "python"),
    ]
    for stage, how in stages:
        said = stopped(stage, command, how)
        assert f"Stopped and saved in {out}. Resume with:" in said, stage
    assert run(*command) == 0
    train(words, load_recipe("default", SMALL), tmp_path / "whole", RecordingCallback())
    assert weights_hash(out) == weights_hash(tmp_path / "whole")
    assert (out / "report.html").is_file()


def test_native_code_that_delays_signals_does_not_block_a_command(words: Dataset, tmp_path: Path) -> None:
    """If it fails, a command in a long call of a library continues for minutes, or is killed by its supervisor."""
    out = tmp_path / "run"
    stopped("training.evaluation.validator:Validator.validate", train_words(words, out), "native")
    assert run(*train_words(words, out)) == 0


@pytest.mark.parametrize(
    "stage", ["export.kinds.vectors:write_vectors", "export.kinds.vector_index:choose_ef_search", "export.job:seal"]
)
def test_an_export_that_stops_leaves_nothing(checkpoint: Path, tmp_path: Path, stage: str) -> None:
    """If it fails, an export continues after SIGTERM, or leaves an incomplete bundle on the disk."""
    store = open_store(tmp_path / "store")
    stopped(stage, ["export", checkpoint, "--store", store.path])
    assert store.bundles() == []
    assert list((store.path / ".incoming").iterdir()) == []


def test_predictions_go_on_where_they_stopped(store: Store, tmp_path: Path) -> None:
    """If it fails, a batch search starts again after a restart of its machine, or gives other answers."""
    queries = tmp_path / "queries.csv"
    queries.write_text("query\n" + "\n".join(f"{one} {other}" for one in WORDS for other in WORDS) + "\n")
    command = ["predict", "--bundle", store.path, "--input", queries, "--output"]
    said = stopped("retrieval.offline.shards:Shards.join", [*command, tmp_path / "found.jsonl"])
    assert "Rerun the same command to resume." in said
    assert run(*command, tmp_path / "found.jsonl") == run(*command, tmp_path / "whole.jsonl") == 0
    assert (tmp_path / "found.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()


@pytest.mark.parametrize(
    ("stage", "command"),
    [
        ("retrieval.retriever:read_bundle", ["search", "STORE", "red shoes"]),
        ("retrieval.sandboxed_opening:verify_in_subprocess", ["bundles", "verify", "STORE", "one"]),
        ("training.prepare.writing:_publish", ["prepare", "CLICKS", "--out", "OUT"]),
        (
            "training.evaluation.checkpoint_evaluation:load_checkpoint",
            ["evaluate", "CHECKPOINT", "--dataset", "DATASET"],
        ),
        ("doctor.store:read_manifest", ["doctor", "--store", "STORE"]),
    ],
)
def test_every_other_command_stops(
    store: Store, words: Dataset, checkpoint: Path, tmp_path: Path, stage: str, command: list[str]
) -> None:
    """If it fails, a command ignores SIGTERM, prints a traceback, or leaves incomplete files."""
    clicks = tmp_path / "clicks.csv"
    clicks.write_text("query,label\n" + "".join(f"query {row},label {row % 7}\n" for row in range(40)))
    places = {"STORE": store.path, "CLICKS": clicks, "OUT": tmp_path / "dataset", "DATASET": words.folder}
    stopped(stage, [str((places | {"CHECKPOINT": checkpoint}).get(word, word)) for word in command])
    assert [path.name for path in tmp_path.iterdir()] == ["clicks.csv"]


def test_ctrl_c_that_a_shell_ignores_stays_ignored() -> None:
    """If it fails, Ctrl-C ends commands that a script started in the background."""
    program = (
        "import signal; from retrieval.system import stopping; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        "stopping.install(); signal.raise_signal(signal.SIGINT); print('going on', stopping.requested())"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout == "going on None\n"
