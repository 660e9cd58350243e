"""The example's table is what its build script writes, and its splits do not change."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pyarrow.parquet as pq
import pytest

FOLDER = Path(__file__).parents[3] / "examples" / "keywords"


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """Import the build script."""
    spec = importlib.util.spec_from_file_location("build", FOLDER / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_split_and_excludes_follow_from_the_labels(build: ModuleType) -> None:
    """If this failed, the script would create another table, in which a test concept could be in training."""
    table = pq.read_table(FOLDER / "keywords.parquet").to_pylist()
    assert list(build.rows({row["query"]: row["labels"] for row in table})) == table
    assert (len(table), sum(row["split"] == "test" for row in table)) == (10_718, 1_054)


def test_variants_of_a_style_are_one_concept(build: ModuleType) -> None:
    """If this failed, "heart" and "heart-outline" would be two queries, one in training and one in test."""
    icons = [
        ("heart", ["love"]),
        ("heart-outline", ["Heart Outline", "like"]),
        ("heart-2", ["love"]),
        ("box", ["carton"]),
    ]
    assert build.merge(icons) == {"heart": ["love", "like"], "box": ["carton"]}


def test_every_package_and_its_licence_is_in_the_notice(build: ModuleType) -> None:
    """If this failed, a package would be redistributed without its licence."""
    notice = (FOLDER / "NOTICE").read_text()
    for package in build.PACKAGES:
        name, _, version = package.rpartition("@")
        assert f"{name} {version}" in notice
    for licence in ("Apache-2.0", "ISC", "MIT", "Unicode-3.0"):
        assert f"Licence: {licence}" in notice
