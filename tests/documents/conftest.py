"""Fixtures of pages: a small click log, and the results of the quick start's commands for it, once per session."""

import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from pyarrow.csv import write_csv

from tests.support.pages import ROOT, Block
from tests.support.programs.page_runner import run_page
from tests.support.shared import make_once

QUERIES = 300
CLICKS = ("log", "queries.csv", "queries.parquet")
PARTS = {"clicks": CLICKS, "dataset": (*CLICKS, "dataset"), "store": (*CLICKS, "dataset", "store")}
COMMANDS = """
diptych prepare log --label-column keyword_id --label-text-column keyword_text --attribute-column market \\
    --test-days 1 --out dataset
diptych train --dataset dataset --out checkpoint
diptych export checkpoint --store store --name one --activate
cp -r store/bundles/one store/bundles/two
"""


@pytest.fixture(scope="session")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create the folder log of 300 queries, queries.csv and queries.parquet."""
    return make_once(tmp_path_factory, "clicks", make_clicks)


def make_clicks(folder: Path) -> None:
    folder.mkdir()
    script = ROOT / "examples" / "clicks" / "make.py"
    subprocess.run([sys.executable, script, folder, "--queries", str(QUERIES)], check=True, capture_output=True)
    queries = pa.table({"query": ["credit card", "rainy day", "shopping basket"]})
    parquet.write_table(queries, folder / "queries.parquet")
    write_csv(queries, folder / "queries.csv")


@pytest.fixture(scope="session")
def made(clicks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a dataset, a checkpoint, and a store with the bundles `one` (active) and `two`."""

    def make(folder: Path) -> None:
        shutil.copytree(clicks, folder)
        run_page([Block("tests/documents/conftest.py", 1, "sh", COMMANDS, None)], folder)
        shutil.rmtree(folder / ".bin")

    return make_once(tmp_path_factory, "made", make)


@pytest.fixture
def prepared(request: pytest.FixtureRequest, tmp_path: Path) -> "Preparer":
    """Return a function that fills a scratch folder with what a page needs."""
    return Preparer(request, tmp_path / "scratch")


class Preparer:
    """Fill the folder that a page runs in."""

    def __init__(self, request: pytest.FixtureRequest, folder: Path) -> None:
        self._request = request
        self._folder = folder

    def __call__(self, needs: str) -> Path:
        self._folder.mkdir()
        match needs:
            case "nothing":
                pass
            case "repository":
                self._copy_small_examples()
            case _:
                source = self._request.getfixturevalue("clicks" if needs == "clicks" else "made")
                self._copy(source, PARTS[needs])
        return self._folder

    def _copy(self, source: Path, names: tuple[str, ...]) -> None:
        for name in names:
            (shutil.copytree if (source / name).is_dir() else shutil.copy)(source / name, self._folder / name)

    def _copy_small_examples(self) -> None:
        shutil.copytree(ROOT / "examples" / "clicks", self._folder / "examples" / "clicks")
        keywords = Path("examples") / "keywords" / "keywords.parquet"
        (self._folder / keywords).parent.mkdir()
        parquet.write_table(parquet.read_table(ROOT / keywords).slice(0, QUERIES), self._folder / keywords)
