"""Bundles that end or hold the process that opens them: the store's own process is not that one."""

import json
import platform
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import retrieval.probe
from retrieval.bundle_files import describe_file
from retrieval.errors import BundleError
from retrieval.manifest import QUERY_ENCODER
from retrieval.probe import prove_aside
from retrieval.store import Store
from tests.support.bundles import make_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "words", ["red shoes", "rain"])


def rehash(folder: Path, name: str) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    content["files"][name] = describe_file(folder / name).model_dump()
    (folder / "manifest.json").write_text(json.dumps(content))


def insert(bundle: Path, *nodes: onnx.NodeProto) -> None:
    """Let the query encoder run more operators, the last of which gives what is added to its vectors: `added`."""
    model = onnx.load(bundle / QUERY_ENCODER)
    last = model.graph.node[-1]
    last.output[0] = "before"
    model.graph.node.extend([*nodes, helper.make_node("Add", ["before", "added"], ["vectors"])])
    onnx.save(model, bundle / QUERY_ENCODER)
    rehash(bundle, QUERY_ENCODER)


def constant_nodes(constants: dict[str, np.ndarray]) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))
        for name, value in constants.items()
    ]


def divide_beyond(bundle: Path) -> None:
    """−2⁶³ divided by −1 is no number of 64 bits: ONNX Runtime does not look, and the processor objects."""
    constants = {"least": np.array([-(1 << 63)]), "minus_one": np.array([-1])}
    insert(
        bundle,
        *constant_nodes(constants),
        helper.make_node("Div", ["least", "minus_one"], ["beyond"]),
        helper.make_node("Cast", ["beyond"], ["added"], to=TensorProto.FLOAT),
    )


def loop_for_ever(bundle: Path) -> None:
    """A loop of 2⁶² rounds."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["still_on"]), helper.make_node("Add", ["held", "held"], ["twice"])],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("held", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("still_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("twice", TensorProto.FLOAT, [1]),
        ],
    )
    constants = {"rounds": np.array(1 << 62), "begin": np.array(True), "zero": np.zeros(1, np.float32)}
    insert(
        bundle,
        *constant_nodes(constants),
        helper.make_node("Loop", ["rounds", "begin", "zero"], ["added"], body=body),
    )


@pytest.mark.skipif(platform.machine() != "x86_64", reason="elsewhere the processor gives a number")
def test_a_bundle_that_ends_its_process_is_refused(bundle: Path, tmp_path: Path) -> None:
    """If it fails, a hostile model ends the process that publishes or activates it, or becomes the active bundle."""
    divide_beyond(bundle)
    store = Store(tmp_path / "store")
    with pytest.raises(BundleError, match=r"words ended the process that opened it \(SIGFPE\)\. Export"):
        store.publish(bundle, "one")
    assert store.bundles() == []


def test_a_bundle_that_never_answers_is_refused(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, a hostile model holds whoever wants to activate it for ever."""
    loop_for_ever(bundle)
    monkeypatch.setattr(retrieval.probe, "PATIENCE_SECONDS", 3)
    with pytest.raises(BundleError, match=r"words did not answer within 3 s\."):
        Store(tmp_path / "store").publish(bundle, "one")


def test_a_bundle_that_answers_differently_is_refused(bundle: Path, tmp_path: Path) -> None:
    """If it fails, a bundle becomes active on a machine that does not give the answers it was measured with."""
    store = Store(tmp_path / "store")
    path = store.publish(bundle, "one")
    golden = json.loads((path / "golden.json").read_text())
    golden["answers"][0]["scores"][0] += 0.01
    (path / "golden.json").write_text(json.dumps(golden))
    rehash(path, "golden.json")
    with pytest.raises(BundleError, match=r"answers differently here: 3 golden queries, .* 1\.0e-02\. Export"):
        store.activate("one")
    assert store.active() is None


def test_a_whole_bundle_proves_itself_aside(bundle: Path) -> None:
    """If it fails, the report of the child is not that of the bundle."""
    report = prove_aside(bundle)
    assert (report.queries, report.overlap_at_10, report.passed) == (3, 1.0, True)
