"""Damaged bundles of a cascade: each is refused in one sentence that names the file and the cause."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval import open_bundle
from retrieval.bundle.manifest import REQUIRED_OF_CASCADE
from retrieval.errors import BundleError
from tests.support.mutations import rehash

GOLDEN = Path(__file__).parents[2] / "golden" / "v5"
LEVELS = ("level_0.npy", "level_1.npy", "parents_1.npy", "parents_2.npy")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return shutil.copytree(GOLDEN, tmp_path / "bundle")


def refused(bundle: Path, message: str) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        open_bundle(bundle)
    assert "\n" not in str(caught.value)


def set_array(bundle: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Replace an array and update its hash, as an attacker would."""
    np.save(bundle / name, change(np.load(bundle / name)))
    rehash(bundle, name)


def set_fact(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((bundle / "manifest.json").read_text())
    change(content)
    (bundle / "manifest.json").write_text(json.dumps(content))


@pytest.mark.parametrize("name", [*REQUIRED_OF_CASCADE, *LEVELS])
def test_a_changed_or_missing_file_is_refused(bundle: Path, name: str) -> None:
    """If it fails, a cascade that was damaged on its way is served."""
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(bytes(content))
    refused(bundle, rf"{name} is damaged")
    (bundle / name).unlink()
    refused(bundle, rf"{name} is missing")


def with_value(place: int, value: float) -> Callable[[Any], Any]:
    def change(array: Any) -> Any:
        array.flat[place] = value
        return array

    return change


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("parents_2.npy", with_value(7, 16), r"node 7 of level 2 of the label tree has the parent 16"),
        ("parents_1.npy", with_value(0, -1), r"node 0 of level 1 of the label tree has the parent -1"),
        ("parents_2.npy", lambda parent_L: np.minimum(parent_L, 14), r"node 15 of level 1 .* has no children"),
        ("parents_2.npy", lambda parent_L: parent_L[:-1], r"parents_2\.npy is an array of int32 of shape \(299,\)"),
        ("parents_1.npy", lambda parent_N: parent_N.astype(np.float32), r"parents_1\.npy is an array of float32"),
        ("parents_2.npy", lambda parent_L: np.repeat(parent_L, 99), r"parents_2\.npy has \d+ bytes"),
        ("level_0.npy", with_value(3, np.nan), r"level_0\.npy contains a vector that is not finite"),
        ("level_1.npy", lambda rows_NE: rows_NE[:, :-1], r"level_1\.npy is an array of float32 of shape"),
        ("vectors.npy", with_value(3, np.inf), r"vectors\.npy contains a vector that is not finite"),
    ],
)
def test_a_tree_or_rows_that_do_not_fit_are_refused(
    bundle: Path, name: str, change: Callable[[Any], Any], message: str
) -> None:
    """If it fails, a hostile bundle makes a search read outside its arrays, or rank by NaN."""
    set_array(bundle, name, change)
    refused(bundle, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda facts: facts.update(cascade=None), "either index or cascade must be given"),
        (lambda facts: facts.update(format_version=4), "format version 4 has no cascade"),
        (lambda facts: facts.update(classifier_weight=0.5), "no dual encoder, and classifier_weight 1"),
        (lambda facts: facts["model"].update(dual_dim=1), "no dual encoder, and classifier_weight 1"),
        (lambda facts: facts["model"].update(classifier_dim=98), "the levels of the cascade have 99 numbers"),
        (lambda facts: facts["labels"].update(count=299), "the cascade has 300 labels, but labels.count is 299"),
        (lambda facts: facts["cascade"]["levels"][0].update(shortlist=None), "must have a shortlist"),
        (lambda facts: facts["cascade"]["levels"][2].update(shortlist=3), "must have a shortlist"),
        (lambda facts: facts["cascade"]["levels"][0].update(shortlist=0), "greater than or equal to 1"),
        (lambda facts: facts["cascade"]["levels"][0].update(nodes=17), "no level may have fewer than the one above"),
        (lambda facts: facts["cascade"]["levels"].pop(0), "'level_1.npy' is not a file of such a bundle"),
        (lambda facts: facts["files"].pop("parents_1.npy"), "files does not list parents_1.npy"),
        (lambda facts: facts["files"].update({"index.hnsw": facts["files"]["vectors.npy"]}), "'index.hnsw' is not"),
        (lambda facts: facts["files"].update({"level_2.npy": facts["files"]["vectors.npy"]}), "'level_2.npy' is not"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    bundle: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    """If it fails, the loader allocates or compares by numbers that are not those of the files."""
    set_fact(bundle, change)
    refused(bundle, message)


def test_a_bundle_without_cascade_is_readable_by_the_release_before(tmp_path: Path) -> None:
    """If it fails, an export with this release cannot be served by replicas that were not updated yet."""
    from tests.support.bundles import make_bundle

    content = json.loads((make_bundle(tmp_path / "bundle") / "manifest.json").read_text())
    assert content["format_version"] == 4
    older = json.loads((GOLDEN.parent / "v4" / "manifest.json").read_text())
    assert content.keys() == older.keys()
    assert content["model"].keys() == older["model"].keys()
    assert content["index"].keys() == older["index"].keys()
