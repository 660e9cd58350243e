"""A bundle of each format version: it opens, and gives the answers recorded when it was made."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from retrieval import open_bundle
from retrieval.bundle.golden_answers import parse_golden
from retrieval.bundle.manifest import FORMAT_VERSION
from retrieval.bundle.verified_files import verify_bundle
from retrieval.errors import BundleError

GOLDEN = Path(__file__).parents[1] / "golden"
VERSIONS = [f"v{version}" for version in range(1, FORMAT_VERSION + 1)]


def test_there_is_one_of_each_version() -> None:
    """If it fails, a format version has no golden bundle that later releases are tested with."""
    assert sorted(path.name for path in GOLDEN.iterdir() if path.is_dir() and path.name != "__pycache__") == VERSIONS
    for version in VERSIONS:
        manifest = json.loads((GOLDEN / version / "manifest.json").read_text())
        assert f"v{manifest['format_version']}" == version


@pytest.mark.parametrize("version", VERSIONS)
def test_it_gives_its_recorded_answers(version: str) -> None:
    """If it fails, existing bundles cannot be opened any more, or give other answers."""
    with open_bundle(GOLDEN / version) as retriever:
        report = retriever.check_golden()
        assert report.passed, report
        assert report.queries == retriever.manifest.golden.queries > 50
        golden = parse_golden(retriever.golden, GOLDEN / version)
        queries = [answer.query for answer in golden.answers]
        best = [answer.scores[0] for answer in golden.answers]
        hits, exact = (retriever.search(queries, 3, weight=golden.weight, exact=exact) for exact in (False, True))
        assert [found[0].dual_encoder + found[0].classifier for found in hits] == pytest.approx(best, abs=1e-4)
        of_exact = [found[0].dual_encoder + found[0].classifier for found in exact]
        if retriever.manifest.cascade is None:
            assert of_exact == pytest.approx(best, abs=1e-4)
        else:  # its shortlists leave out labels with a higher score
            assert (np.array(of_exact) >= np.array(best) - 1e-4).all()


@pytest.mark.parametrize("version", VERSIONS)
def test_it_is_complete_and_small(version: str) -> None:
    """If it fails, the golden bundle was changed, or makes the repository large."""
    manifest = verify_bundle(GOLDEN / version)
    assert sum(entry.bytes for entry in manifest.files.values()) < 300_000


def test_a_newer_version_is_refused_with_both_numbers(tmp_path: Path) -> None:
    """If it fails, a newer bundle is misread, or the error does not say which versions can be read."""
    folder = shutil.copytree(GOLDEN / VERSIONS[-1], tmp_path / "newer")
    content = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(content | {"format_version": FORMAT_VERSION + 1}))
    said = f"version {FORMAT_VERSION + 1}; this release reads versions 1 to {FORMAT_VERSION}. Install a newer release"
    with pytest.raises(BundleError, match=said):
        open_bundle(folder)
