"""The real chain, once a session: examples/keywords → dataset → checkpoint → store. Tests must not write to these."""

import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]

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
    from training.prepare.prepare import PrepareSettings, prepare

    folder = tmp_path_factory.mktemp("chain") / "dataset"
    prepare(ROOT / "examples" / "keywords", folder, PrepareSettings())
    return folder


@pytest.fixture(scope="session")
def checkpoint(dataset_folder: Path) -> Path:
    """The example's recipe, trained for three epochs: enough to be far better than chance; popularity always counts."""
    from tests.support.listener import RecordingCallback
    from training.data.dataset import Dataset
    from training.recipe.loading import load_recipe
    from training.run import train

    folder = dataset_folder.parent / "checkpoint"
    recipe = load_recipe("default", ["optimizer.epochs=3", "validation.popularities=[0.15]"])
    train(Dataset.open(dataset_folder), recipe, folder, RecordingCallback())
    return folder


@pytest.fixture(scope="session")
def store(checkpoint: Path) -> Path:
    """A store whose one bundle, exported from `checkpoint`, is active."""
    from export.build import export
    from retrieval.open import open_store

    folder = checkpoint.parent / "store"
    opened = open_store(folder)
    opened.activate(export(checkpoint, opened).name)
    return folder
