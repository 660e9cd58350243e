"""A small part of the example and an uninterrupted run on it, once per session. Tests must not write to these."""

from pathlib import Path

import numpy as np
import pytest

from tests.support.listener import RecordingCallback
from tests.support.shared import make_once
from tests.support.training.small_run import small_recipe
from training.data.dataset import Dataset, DatasetMeta
from training.prepare.writing import write_dataset
from training.run import train


@pytest.fixture(scope="session")
def small(dataset_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The first queries of the example, with all of its labels."""

    def make(folder: Path) -> None:
        whole = Dataset.open(dataset_folder)
        splits = {
            name: whole.split(name).take(np.arange(rows)).table()
            for name, rows in (("train", 600), ("validation", 150), ("test", 150))
        }
        write_dataset(folder, whole.label_table, splits, DatasetMeta(name="small"))  # type: ignore[arg-type]

    return Dataset.open(make_once(tmp_path_factory, "small", make))


@pytest.fixture(scope="session")
def finished(small: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""

    def make(folder: Path) -> None:
        train(small, small_recipe(), folder, RecordingCallback())

    return make_once(tmp_path_factory, "finished", make)
