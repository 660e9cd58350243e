"""The manifest: invalid ones are refused; ef_search and score scales."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval.bundle.facts import EfSearch, IndexFacts, ModelFacts
from retrieval.bundle.manifest import MAX_FILES, MEMORY, Manifest, read_manifest
from retrieval.bundle.verified_files import verify_bundle
from retrieval.errors import BundleError
from tests.support.bundles import VOTES, make_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "words")


def rewritten(bundle: Path, tmp_path: Path, **changes: Any) -> Path:
    """Write a manifest with some fields changed; a field set to ... is left out."""
    content = json.loads((bundle / "manifest.json").read_text()) | changes
    folder = tmp_path / "changed"
    folder.mkdir()
    kept = {key: value for key, value in content.items() if value is not ...}
    (folder / "manifest.json").write_text(json.dumps(kept))
    return folder


def facts(balance: float = 0.3) -> ModelFacts:
    return ModelFacts(
        encoder="static",
        dual_dim=3,
        classifier_dim=2,
        balance=balance,
        max_tokens=8,
        max_characters=80,
        pad_id=0,
        unknown_id=1,
        bytes_per_token=4.0,
    )


def index_facts(*efs: int | None) -> IndexFacts:
    weights = np.linspace(0, 1, len(efs)).tolist()
    measured = tuple(
        EfSearch(weight=w, ef=ef, recall_at_10=1, recall_at_1=1) for w, ef in zip(weights, efs, strict=True)
    )
    return IndexFacts(m=16, ef_construction=100, recall_target=0.99, recall_queries=10, ef_search=measured)


def test_a_real_manifest_is_read_as_it_was_written(bundle: Path) -> None:
    """If it fails, a reader gets other values than export recorded."""
    assert read_manifest(bundle) == verify_bundle(bundle)
    assert read_manifest(bundle).labels.count == 200


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format_version": 7}, r"version 7; this release reads versions 1 to 6. Install a newer"),
        ({"format_version": 0}, r"version 0; this release reads versions 1 to 6. Export"),
        ({"format_version": "2"}, "format_version"),
        ({"format_version": ...}, "format_version: Field required"),
        ({"surprise": 1}, "surprise: Extra inputs"),
        ({"labels": 0}, "labels"),
        ({"classifier_weight": 1.5}, "classifier_weight"),
        ({"classifier_weight": float("nan")}, "classifier_weight"),
        ({"precision": "int4"}, "precision"),
        ({"files": {}}, "tokenizer.json"),
        ({"files": []}, "files"),
    ],
)
def test_a_bad_field_is_named(bundle: Path, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    """If it fails, an unsupported manifest is accepted, or refused without the reason."""
    with pytest.raises(BundleError, match=said):
        read_manifest(rewritten(bundle, tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "index_changes", "said"),
    [
        ({"vectors": "int8"}, {}, "format version 4 has no vectors in int8"),
        ({"vectors": "int8", "format_version": 6}, {}, "vector_scales.npy does not fit"),
        ({"vectors": "int4", "format_version": 6}, {}, "vectors: Input should be"),
        ({}, {"m": None}, "m and ef_construction must be given"),
        ({"format_version": 6}, {"kind": "exact"}, "must not be given with kind 'exact'"),
        ({"format_version": 6}, {"kind": "exact", "m": None, "ef_construction": None}, "width and ef must be null"),
        ({"format_version": 6}, {"kind": "flat"}, "index.kind: Input should be"),
    ],
)
def test_precision_and_kind_must_fit_the_files(
    bundle: Path, tmp_path: Path, changes: dict[str, Any], index_changes: dict[str, Any], said: str
) -> None:
    """If it fails, a reader takes codes for numbers, or looks for a graph that does not exist."""
    index = json.loads((bundle / "manifest.json").read_text())["index"] | index_changes
    with pytest.raises(BundleError, match=said):
        read_manifest(rewritten(bundle, tmp_path, index=index, **changes))


@pytest.mark.parametrize("changes", [{"vectors": "int8"}, {"kind": "exact"}])
def test_a_newer_key_needs_the_newer_version(tmp_path: Path, changes: dict[str, Any]) -> None:
    """If it fails, an older release opens a bundle that it cannot read, or refuses one that it can."""
    older = json.loads((make_bundle(tmp_path / "older") / "manifest.json").read_text())
    newer = json.loads((make_bundle(tmp_path / "newer", **changes) / "manifest.json").read_text())
    assert (older["format_version"], newer["format_version"]) == (4, 6)
    assert not {"vectors", "cascade"} & older.keys()
    assert "kind" not in older["index"]


@pytest.mark.parametrize("name", ["../vectors.npy", "/etc/passwd", "a/b", "..", ".hidden", "manifest.json", "", "a\n"])
def test_a_file_name_cannot_leave_the_bundle(bundle: Path, tmp_path: Path, name: str) -> None:
    """If it fails, a hostile manifest makes the reader open any file of this machine."""
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    folder = rewritten(bundle, tmp_path, files=files | {name: files["vectors.npy"]})
    with pytest.raises(BundleError, match="not a plain file name"):
        read_manifest(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_invalid_manifests_are_refused(tmp_path: Path, content: bytes) -> None:
    """If it fails, a truncated manifest ends in a traceback."""
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        read_manifest(tmp_path)


def test_a_manifest_of_too_many_files_is_refused(bundle: Path, tmp_path: Path) -> None:
    """If it fails, a manifest exhausts the file descriptors of its reader."""
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    files |= {f"file{number}": files["golden.json"] for number in range(MAX_FILES)}
    with pytest.raises(BundleError, match=r"files: Dictionary should have at most 256 items"):
        read_manifest(rewritten(bundle, tmp_path, files=files))


def test_an_oversized_manifest_is_not_read(tmp_path: Path) -> None:
    """If it fails, a huge manifest fills the memory of every reader."""
    (tmp_path / "manifest.json").write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(BundleError, match="at most"):
        read_manifest(tmp_path)


def test_a_weight_between_two_measured_ones_takes_the_larger_ef_search() -> None:
    """If it fails, a request with another weight gets less recall than the manifest promises."""
    index = index_facts(64, 32, 128)
    assert [index.ef_search_at(weight) for weight in (0.0, 0.2, 0.5, 0.7, 1.0)] == [64, 64, 32, 128, 128]
    index = index_facts(64, 32, None)
    assert [index.ef_search_at(weight) for weight in (0.2, 0.5, 0.7, 1.0)] == [64, 32, None, None]


@pytest.mark.parametrize("weights", [[], [0.0], [0.0, 0.5], [0.5, 1.0], [1.0, 0.0], [0.0, 0.0, 1.0]])
def test_ef_search_must_cover_every_weight(weights: list[float]) -> None:
    """If it fails, some weight between 0 and 1 has no measured ef_search and its search fails."""
    measured = tuple(EfSearch(weight=weight, ef=10, recall_at_10=1, recall_at_1=1) for weight in weights)
    with pytest.raises(ValueError, match="must rise from 0 to 1"):
        IndexFacts(m=16, ef_construction=100, recall_target=0.99, recall_queries=10, ef_search=measured)


@pytest.mark.parametrize("balance", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_scaled_halves_give_the_weighted_score(balance: float, weight: float) -> None:
    """If it fails, scores are not (1−w)·s_DE + w·s_CLF."""
    model = facts(balance)
    query_D, label_D = np.random.default_rng(0).standard_normal((2, 5)).astype(np.float32)
    score = (query_D * model.query_scale(weight)) @ (label_D * model.label_scale())
    expected = (1 - weight) * query_D[:3] @ label_D[:3] + weight * query_D[3:] @ label_D[3:]
    assert score == pytest.approx(expected, abs=1e-6)


def test_the_manifest_is_frozen(bundle: Path) -> None:
    """If it fails, a program can change the manifest of an open bundle."""
    manifest: Manifest = read_manifest(bundle)
    with pytest.raises(ValueError, match="frozen"):
        manifest.labels = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("nodes", "listed", "said"),
    [
        (3, False, r"index\.nodes and nodes\.npy must be given together"),
        (None, True, r"index\.nodes and nodes\.npy must be given together"),
        (201, True, "the index has 201 nodes, more than the 200 labels"),
    ],
)
def test_nodes_and_their_file_go_together(
    bundle: Path, tmp_path: Path, nodes: int | None, listed: bool, said: str
) -> None:
    """If it fails, labels that share a node are not found, or the size of the index is wrong."""
    content = json.loads((bundle / "manifest.json").read_text())
    files = content["files"] | {"nodes.npy": content["files"]["directions.npy"]}
    files = files if listed else {name: entry for name, entry in files.items() if name != "nodes.npy"}
    with pytest.raises(BundleError, match=said):
        read_manifest(rewritten(bundle, tmp_path, index=content["index"] | {"nodes": nodes}, files=files))


def test_more_answers_search_harder_and_older_bundles_as_before() -> None:
    """If it fails, k = 100 has too little recall, k = 10 is slow, or older bundles are searched with other settings."""
    old = EfSearch(weight=0.5, ef=100, recall_at_10=1.0, recall_at_1=1.0)
    new = old.model_copy(update={"ef_at_100": 280, "recall_at_100": 1.0})
    with pytest.raises(ValueError, match="must be given together"):
        EfSearch(weight=0.5, ef=100, ef_at_100=280, recall_at_10=1.0, recall_at_1=1.0)
    assert [old.at(k) for k in (1, 10, 100, 1000)] == [100] * 4
    assert [new.at(k) for k in (1, 10, 11, 55, 100, 190)] == [100, 100, 102, 190, 280, 460]
    none = new.model_copy(update={"ef_at_100": None})
    assert [none.at(k) for k in (10, 11)] == [100, None]
    assert new.model_copy(update={"ef": None}).at(100) is None


@pytest.mark.parametrize(
    ("width", "dropped", "said"),
    [
        (None, False, "index.width and directions.npy must be given together"),
        (20, True, "index.width and directions.npy must be given together"),
        (41, False, "the index has 41 numbers per label, more than the 40 of a whole vector"),
    ],
)
def test_the_index_and_its_projection_go_together(
    bundle: Path, tmp_path: Path, width: int | None, dropped: bool, said: str
) -> None:
    """If it fails, hnswlib gets queries of another width than its vectors, and reads beyond them."""
    content = json.loads((bundle / "manifest.json").read_text())
    files = {name: entry for name, entry in content["files"].items() if not (dropped and name == "directions.npy")}
    with pytest.raises(BundleError, match=said):
        read_manifest(rewritten(bundle, tmp_path, index=content["index"] | {"width": width}, files=files))


def test_the_index_has_the_energy_of_its_projection(bundle: Path, tmp_path: Path) -> None:
    """If it fails, a manifest lacks a figure that export recorded."""
    content = json.loads((bundle / "manifest.json").read_text())
    with pytest.raises(BundleError, match=r"index\.width and index\.energy must be given together"):
        read_manifest(rewritten(bundle, tmp_path, index=content["index"] | {"energy": None}))


@pytest.mark.parametrize("name", MEMORY)
def test_the_memory_and_its_files_go_together(tmp_path: Path, name: str) -> None:
    """If it fails, a bundle is opened without the votes that its answers were measured with."""
    folder = make_bundle(tmp_path / "words", memory=VOTES)
    content = json.loads((folder / "manifest.json").read_text())
    files = {one: entry for one, entry in content["files"].items() if one != name}
    said = f"memory and {name} must be given together"
    with pytest.raises(BundleError, match=said):
        read_manifest(rewritten(folder, tmp_path, files=files))
    shutil.rmtree(tmp_path / "changed")
    with pytest.raises(BundleError, match=r"memory and memory\.arrow must be given together"):
        read_manifest(rewritten(folder, tmp_path, memory=None))


def test_the_index_of_the_memory_is_no_wider_than_a_half(tmp_path: Path) -> None:
    """If it fails, hnswlib gets queries of another width than its vectors, and reads beyond them."""
    folder = make_bundle(tmp_path / "words", memory=VOTES)
    content = json.loads((folder / "manifest.json").read_text())
    with pytest.raises(BundleError, match=r"memory\.width is 17, more than the 16 of a half"):
        read_manifest(rewritten(folder, tmp_path, memory=content["memory"] | {"width": 17}))


def test_a_manifest_lists_only_files_of_a_bundle(bundle: Path, tmp_path: Path) -> None:
    """If it fails, a bundle with a huge extra file lifts the memory limit of the processes that open it."""
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    weights = files | {"query_encoder.onnx.data": files["vectors.npy"]}
    assert read_manifest(rewritten(bundle, tmp_path, files=weights)).files.keys() == weights.keys()
    (tmp_path / "changed" / "manifest.json").unlink()
    (tmp_path / "changed").rmdir()
    with pytest.raises(BundleError, match=r"'vectors\.bin' is not a file of a bundle"):
        read_manifest(rewritten(bundle, tmp_path, files=files | {"vectors.bin": files["vectors.npy"]}))
