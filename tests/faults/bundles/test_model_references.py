"""Models with external weights: only in verified files of the bundle."""

from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import pytest
from onnx.external_data_helper import convert_model_to_external_data

from retrieval import open_bundle
from retrieval.bundle.manifest import QUERY_ENCODER
from retrieval.errors import BundleError
from tests.support.bundles import make_bundle
from tests.support.mutations import rehash

BESIDE = "query_encoder.onnx.data"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Make a bundle whose query encoder has its weights in another file that the manifest lists."""
    folder = make_bundle(tmp_path / "store" / "words", ["red shoes", "rain"])
    model = onnx.load(folder / QUERY_ENCODER)
    convert_model_to_external_data(model, location=BESIDE, size_threshold=1024)
    onnx.save(model, folder / QUERY_ENCODER)
    rehash(folder, QUERY_ENCODER, BESIDE)
    return folder


def renamed(location: str) -> Callable[[bytes], bytes]:
    """Return a change that moves the weights of a model to another file."""

    def change(written: bytes) -> bytes:
        model = onnx.load_from_string(written)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        return model.SerializeToString()

    return change


def entry(key: bytes, value: bytes) -> bytes:
    return b"\x0a" + key + b"\x12" + bytes([len(value)]) + value


def rewritten(other: bytes) -> Callable[[bytes], bytes]:
    """Return a change that writes one entry in another encoding. Outer lengths no longer fit; they are not checked."""
    usual = entry(b"\x08location", BESIDE.encode())
    return lambda written: written.replace(bytes([len(usual)]) + usual, other, 1)


ELSEWHERE = b"../secret"
HOSTILE = {
    "a parent": renamed("../secret"),
    "a parent in disguise": renamed("./x/../../secret"),
    "an absolute path": renamed("/etc/hostname"),
    "memory": renamed("*/_ORT_MEM_ADDR_/*"),
    "a longer length": rewritten(b"\x17" + entry(b"\x88\x00location", ELSEWHERE)),
    "the path first": rewritten(b"\x15\x12\x09" + ELSEWHERE + b"\x0a\x08location"),
    "two paths": rewritten(b"\x2c" + entry(b"\x08location", BESIDE.encode()) + b"\x12\x09" + ELSEWHERE),
}


def test_weights_in_a_separate_file_are_read(bundle: Path) -> None:
    """If it fails, a model beyond the 2 GB of one protobuf file cannot be served."""
    with open_bundle(bundle) as retriever:
        assert retriever.search(["rain"], 1)[0][0].text == "rain"
        assert retriever.check_golden().passed


@pytest.mark.parametrize("how", sorted(HOSTILE))
def test_a_reference_out_of_the_bundle_is_refused(bundle: Path, how: str) -> None:
    """If it fails, a hostile bundle can read any file of the machine into its answers."""
    (bundle.parent / "secret").write_bytes((bundle / BESIDE).read_bytes())
    path = bundle / QUERY_ENCODER
    before = path.read_bytes()
    path.write_bytes(HOSTILE[how](before))
    assert path.read_bytes() != before
    rehash(bundle, QUERY_ENCODER)
    with pytest.raises(BundleError, match=r"query_encoder\.onnx refers to data outside of the bundle\. Export"):
        open_bundle(bundle)


def test_a_reference_to_a_file_that_is_not_listed_is_refused(bundle: Path) -> None:
    """If it fails, a bundle's weights can be replaced after it was verified."""
    path = bundle / QUERY_ENCODER
    path.write_bytes(renamed("absent.data")(path.read_bytes()))
    rehash(bundle, QUERY_ENCODER)
    with pytest.raises(BundleError, match=r"query_encoder\.onnx refers to absent\.data, which is not a file of"):
        open_bundle(bundle)
    (bundle / "absent.data").write_bytes((bundle / BESIDE).read_bytes())
    with pytest.raises(BundleError, match=r"absent\.data is not listed"):
        open_bundle(bundle)


def test_words_that_only_contain_the_key_are_no_references(bundle: Path) -> None:
    """If it fails, a valid model is refused because a name in it contains "location"."""
    model = onnx.load(bundle / QUERY_ENCODER)
    for place, node in enumerate(model.graph.node):
        node.name = f"/encoder/location_{place}/allocation"
    onnx.save(model, bundle / QUERY_ENCODER)
    rehash(bundle, QUERY_ENCODER)
    assert onnxruntime.InferenceSession(str(bundle / QUERY_ENCODER), providers=["CPUExecutionProvider"])
    open_bundle(bundle).close()
