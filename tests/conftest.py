"""The real chain, once per session: examples/keywords → dataset → checkpoint → store. Tests must not write to these."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.shared import make_once

ROOT = Path(__file__).resolve().parents[1]

# Workers of pytest-xdist share the cores: OpenMP threads beyond one per process would only wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Hypothesis fails an example that takes more than 200 ms, or inputs that are slow to draw: that is the machine's load.
settings.register_profile("no time limits", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no time limits")

# nohup and shells that start a command in the background let it ignore these; services of the tests would inherit that.
for number in (signal.SIGHUP, signal.SIGINT):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL if number is signal.SIGHUP else signal.default_int_handler)


@pytest.fixture(scope="session")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's dataset, prepared."""

    def make(folder: Path) -> None:
        from training.prepare.prepare import prepare
        from training.prepare.settings import PrepareSettings

        prepare(ROOT / "examples" / "keywords", folder, PrepareSettings())

    return make_once(tmp_path_factory, "dataset", make)


@pytest.fixture(scope="session")
def checkpoint(dataset_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's recipe, trained for three epochs: enough to be far better than chance; popularity always counts."""

    def make(folder: Path) -> None:
        from tests.support.listener import RecordingCallback
        from training.data.dataset import Dataset
        from training.recipe.loading import load_recipe
        from training.run import train

        recipe = load_recipe("default", ["optimizer.epochs=3", "validation.popularities=[0.15]"])
        train(Dataset.open(dataset_folder), recipe, folder, RecordingCallback())

    return make_once(tmp_path_factory, "checkpoint", make)


@pytest.fixture(scope="session")
def store(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose one bundle, exported from `checkpoint`, is active."""

    def make(folder: Path) -> None:
        from export.build import export
        from retrieval.open import open_store

        opened = open_store(folder)
        opened.activate(export(checkpoint, opened).name)

    return make_once(tmp_path_factory, "store", make)


@pytest.fixture(scope="session")
def words_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 300 labels, trained in seconds; its dataset is beside it."""
    from tests.support.training.checkpoints import make_checkpoint

    return make_once(tmp_path_factory, "words", make_checkpoint) / "checkpoint"
