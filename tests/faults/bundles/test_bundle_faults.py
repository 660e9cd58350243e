"""Damaged bundles: each is refused in one sentence that names file and cause, and never reaches native code."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from retrieval import open_bundle
from retrieval.bundle.labels import write_labels
from retrieval.bundle.manifest import REQUIRED
from retrieval.bundle.verified_files import describe_file
from retrieval.errors import BundleError
from tests.support.bundles import make_bundle


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "words")


@pytest.fixture
def bundle(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "words")


def refused(folder: Path, naming: str) -> None:
    """Opening must fail with a sentence that names the file."""
    with pytest.raises(BundleError) as caught:
        open_bundle(folder)
    message = str(caught.value)
    assert naming in message, message
    assert message.endswith("."), message
    assert "\n" not in message, message


def rehash(folder: Path, name: str) -> None:
    """Update the hash of a changed file in the manifest, as an attacker would."""
    content = json.loads((folder / "manifest.json").read_text())
    content["files"][name] = describe_file(folder / name).model_dump()
    (folder / "manifest.json").write_text(json.dumps(content))


def flip(content: bytes) -> bytes:
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


MUTATIONS: dict[str, Callable[[bytes], bytes]] = {
    "flipped bit": flip,
    "truncated": lambda content: content[: len(content) // 2],
    "emptied": lambda content: b"",
    "extended": lambda content: content + b"\0",
    "swapped halves": lambda content: content[len(content) // 2 :] + content[: len(content) // 2],
}


@pytest.mark.parametrize("mutation", sorted(MUTATIONS))
@pytest.mark.parametrize("name", [*REQUIRED, "manifest.json"])
def test_a_changed_file_is_refused(bundle: Path, name: str, mutation: str) -> None:
    """If it fails, a bundle that was damaged on its way is served."""
    if (name, mutation) == ("manifest.json", "flipped bit"):
        changed = (bundle / name).read_bytes().replace(b'"sha256": "', b'"sha256": "0', 1)
    else:
        changed = MUTATIONS[mutation]((bundle / name).read_bytes())
    (bundle / name).write_bytes(changed)
    refused(bundle, name)


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_file_is_refused(bundle: Path, name: str) -> None:
    """If it fails, an incomplete copy of a bundle is opened, and fails later at the first use of a missing file."""
    (bundle / name).unlink()
    refused(bundle, name)


@pytest.mark.parametrize("name", REQUIRED)
def test_a_link_in_place_of_a_file_is_refused(whole: Path, bundle: Path, name: str) -> None:
    """If it fails, a bundle's content can be changed by another process after it was verified."""
    (bundle / name).unlink()
    (bundle / name).symlink_to(whole / name)
    refused(bundle, name)


def test_a_file_that_is_not_listed_is_refused(bundle: Path) -> None:
    """If it fails, a bundle can contain files without hashes, such as ONNX external data."""
    (bundle / "query_encoder.onnx.data").write_bytes(b"0")
    refused(bundle, "query_encoder.onnx.data")


def test_a_folder_in_place_of_a_file_is_refused(bundle: Path) -> None:
    """If it fails, hashing a folder ends in a traceback."""
    (bundle / "vectors.npy").unlink()
    (bundle / "vectors.npy").mkdir()
    refused(bundle, "vectors.npy")


def test_two_exchanged_files_are_refused(bundle: Path) -> None:
    """If it fails, the label encoder answers queries."""
    query, label = bundle / "query_encoder.onnx", bundle / "label_encoder.onnx"
    content = query.read_bytes()
    query.write_bytes(label.read_bytes())
    label.write_bytes(content)
    refused(bundle, "_encoder.onnx")


# What a rehashed file must still be refused for: hashes prove origin, not sense.


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((200, 39), np.float32),
        np.zeros((199, 40), np.float32),
        np.zeros((200, 40), np.float64),
        np.asfortranarray(np.zeros((200, 40), np.float32)),
        np.zeros(8000, np.float32),
    ],
    ids=["narrower", "fewer", "doubles", "column-major", "flat"],
)
def test_vectors_of_another_shape_are_refused(bundle: Path, array: np.ndarray) -> None:
    """If it fails, scores are read from beyond the vectors, or from other labels."""
    np.save(bundle / "vectors.npy", array)
    rehash(bundle, "vectors.npy")
    refused(bundle, "vectors.npy")


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1e30])
def test_vectors_that_give_no_scores_are_refused(bundle: Path, number: float) -> None:
    """If it fails, an answer contains a NaN score, and its JSON cannot be parsed."""
    vectors_LD = np.load(bundle / "vectors.npy")
    vectors_LD[150, 7] = number
    np.save(bundle / "vectors.npy", vectors_LD)
    rehash(bundle, "vectors.npy")
    refused(bundle, "vectors.npy contains a vector that is not finite")


def test_an_index_that_became_another_is_called_damaged(bundle: Path) -> None:
    """If it fails, the message after a bad copy asks for a new export, which does not help."""
    content = bytearray((bundle / "index.hnsw").read_bytes())
    content[8:16] = bytes(8)  # the capacity, which the index's own check would refuse as well
    (bundle / "index.hnsw").write_bytes(content)
    refused(bundle, "index.hnsw is damaged")


def test_pickled_vectors_are_refused(bundle: Path) -> None:
    """If it fails, opening a hostile bundle runs its code."""
    np.save(bundle / "vectors.npy", np.array([{}], object), allow_pickle=True)
    rehash(bundle, "vectors.npy")
    refused(bundle, "vectors.npy")


def test_labels_of_another_number_are_refused(bundle: Path) -> None:
    """If it fails, hits carry the texts of other labels."""
    write_labels(bundle / "labels.arrow", pa.table({"id": ["a"], "text": ["A"]}))
    rehash(bundle, "labels.arrow")
    refused(bundle, "labels.arrow")


def test_an_encoder_of_another_width_is_refused(bundle: Path) -> None:
    """If it fails, query vectors do not fit the index and the first search fails, or reads past them."""
    shutil.copyfile(bundle / "label_encoder.onnx", bundle / "query_encoder.onnx")
    rehash(bundle, "query_encoder.onnx")
    refused(bundle, "query_encoder.onnx")


@pytest.mark.parametrize("name", REQUIRED)
def test_a_rehashed_file_of_nonsense_is_refused(bundle: Path, name: str) -> None:
    """If it fails, a file of another type than its name crashes the process that opens the bundle."""
    (bundle / name).write_bytes(b"\x93NUMPY nonsense" * 100)
    rehash(bundle, name)
    if name == "label_encoder.onnx":  # never opened by a reader: only its hash counts
        assert open_bundle(bundle).search(["red"], 1)
    elif name == "golden.json":
        with open_bundle(bundle) as retriever, pytest.raises(BundleError, match=r"golden\.json"):
            retriever.check_golden()
    else:
        refused(bundle, name)


def test_a_manifest_of_another_index_size_is_refused(bundle: Path) -> None:
    """If it fails, hnswlib gets a size that differs from its file."""
    content = json.loads((bundle / "manifest.json").read_text())
    content["labels"]["count"] = 100
    (bundle / "manifest.json").write_text(json.dumps(content))
    refused(bundle, "100")
