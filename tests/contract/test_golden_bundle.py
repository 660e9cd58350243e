"""A bundle of each format version, kept for ever: it opens, and answers as on the day it was made."""

import json
import shutil
from pathlib import Path

import pytest

from retrieval import open_bundle
from retrieval.bundle.golden_answers import read_golden
from retrieval.bundle.manifest import FORMAT_VERSION
from retrieval.bundle.verified_files import verify_bundle
from retrieval.errors import BundleError

KEPT = Path(__file__).parents[1] / "golden"
VERSIONS = [f"v{version}" for version in range(1, FORMAT_VERSION + 1)]


def test_there_is_one_of_each_version() -> None:
    """If it fails, a format came into the world without the bundle that holds later releases to it."""
    assert sorted(path.name for path in KEPT.iterdir() if path.is_dir() and path.name != "__pycache__") == VERSIONS
    for version in VERSIONS:
        manifest = json.loads((KEPT / version / "manifest.json").read_text())
        assert f"v{manifest['format_version']}" == version


@pytest.mark.parametrize("version", VERSIONS)
def test_it_answers_as_on_the_day_it_was_made(version: str) -> None:
    """If it fails, bundles that people have in their stores cannot be opened any more, or give other answers."""
    with open_bundle(KEPT / version) as retriever:
        report = retriever.check_golden()
        assert report.passed, report
        assert report.queries == retriever.manifest.golden.queries > 50
        golden = read_golden(KEPT / version)
        queries = [answer.query for answer in golden.answers]
        for how in ({}, {"exact": True}):
            hits = retriever.search(queries, 3, weight=golden.weight, **how)
            agreeing = sum(
                found[0].score == pytest.approx(answer.scores[0], abs=1e-4)
                for found, answer in zip(hits, golden.answers, strict=True)
            )
            assert agreeing == len(queries)


@pytest.mark.parametrize("version", VERSIONS)
def test_it_is_whole_and_small(version: str) -> None:
    """If it fails, the kept bundle was changed, or weighs on everybody's clone."""
    manifest = verify_bundle(KEPT / version)
    assert sum(entry.bytes for entry in manifest.files.values()) < 300_000


def test_a_newer_version_is_refused_with_both_numbers(tmp_path: Path) -> None:
    """If it fails, a release guesses what a newer one wrote, or leaves the user guessing which release to install."""
    folder = shutil.copytree(KEPT / VERSIONS[-1], tmp_path / "newer")
    content = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(content | {"format_version": FORMAT_VERSION + 1}))
    said = f"version {FORMAT_VERSION + 1}; this release reads versions 1 to {FORMAT_VERSION}. Install a newer release"
    with pytest.raises(BundleError, match=said):
        open_bundle(folder)
