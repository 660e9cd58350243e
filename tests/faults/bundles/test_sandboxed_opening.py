"""Bundles that crash or block the process that opens them: it is a child process."""

import json
import os
import platform
import signal
import sys
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pytest
from onnx import TensorProto, helper, numpy_helper

from retrieval.bundle.labels import LabelTable
from retrieval.bundle.manifest import LABELS, QUERY_ENCODER, TOKENIZER
from retrieval.bundle.verified_files import describe_file
from retrieval.errors import BundleError
from retrieval.open import open_store
from retrieval.sandboxed_opening import OUTPUT_BYTES, run_program, verify_in_process, verify_in_subprocess
from retrieval.store.local import Store
from tests.support.bundles import make_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "words", ["red shoes", "rain"])


def rehash(folder: Path, name: str) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    content["files"][name] = describe_file(folder / name).model_dump()
    (folder / "manifest.json").write_text(json.dumps(content))


def insert(bundle: Path, *nodes: onnx.NodeProto) -> None:
    """Append operators to the query encoder; the output `added` of the last one is added to its vectors."""
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


def calculate_for_minutes(bundle: Path) -> None:
    """Append thousands of operators on ten million numbers, without a loop."""
    steps = 20_000
    constants = {"shape": np.array([10_000_000]), "first": np.array([0]), "end": np.array([1])}
    insert(
        bundle,
        *constant_nodes(constants),
        helper.make_node("ConstantOfShape", ["shape"], ["step0"]),
        *(helper.make_node("Erf", [f"step{step}"], [f"step{step + 1}"]) for step in range(steps)),
        helper.make_node("Slice", [f"step{steps}", "first", "end"], ["added"]),
    )


def loop_for_ever(bundle: Path) -> None:
    """Append a loop of 2⁶² rounds."""
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
    store = open_store(tmp_path / "store")
    with pytest.raises(BundleError, match=r"words ended the process that opened it \(SIGFPE\)\. Export"):
        store.publish(bundle, "one")
    assert store.bundles() == []


def test_a_bundle_that_never_answers_is_refused(bundle: Path, tmp_path: Path) -> None:
    """If it fails, a hostile model blocks `bundles activate` for ever."""
    calculate_for_minutes(bundle)
    store = Store(tmp_path / "store", partial(verify_in_subprocess, least_seconds=3))
    with pytest.raises(BundleError, match=r"words did not answer within 3 s\."):
        store.publish(bundle, "one")


def test_a_model_that_can_loop_is_refused_before_it_is_opened(bundle: Path, tmp_path: Path) -> None:
    """If it fails, a model can loop for ever on some query, although its golden queries end."""
    loop_for_ever(bundle)
    with pytest.raises(BundleError, match=r"query_encoder\.onnx has a node 'Loop' with a graph inside\."):
        Store(tmp_path / "store", verify_in_process).publish(bundle, "one")


def test_a_bundle_that_answers_differently_is_refused(bundle: Path, tmp_path: Path) -> None:
    """If it fails, a bundle becomes active on a machine where it gives other answers than were measured."""
    store = open_store(tmp_path / "store")
    path = store.publish(bundle, "one")
    golden = json.loads((path / "golden.json").read_text())
    golden["answers"][0]["scores"][0] += 0.01
    (path / "golden.json").write_text(json.dumps(golden))
    rehash(path, "golden.json")
    with pytest.raises(BundleError, match=r"differ from its golden answers: 3 golden queries, .* 1\.0e-02\. Export"):
        store.activate("one")
    assert store.active() is None


def multiply_texts(bundle: Path) -> None:
    """Let the tokenizer, which has a few kilobytes, turn one letter into four billion."""
    path = bundle / TOKENIZER
    content = json.loads(path.read_text())
    double = {"type": "Replace", "pattern": {"String": "e"}, "content": "ee"}
    content["normalizer"] = {"type": "Sequence", "normalizers": [double] * 32}
    path.write_text(json.dumps(content))
    rehash(bundle, TOKENIZER)


def test_a_bundle_that_takes_all_memory_is_refused(bundle: Path, tmp_path: Path) -> None:
    """If it fails, a small hostile bundle uses up the memory of the machine that publishes it."""
    multiply_texts(bundle)
    store = open_store(tmp_path / "store")
    with pytest.raises(BundleError, match=r"words ended the process that opened it \(SIGABRT\)\. Export"):
        store.publish(bundle, "one")
    assert store.bundles() == []


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_compressed_labels_are_refused(bundle: Path, codec: str) -> None:
    """If it fails, labels of a megabyte become gigabytes in memory when they are read."""
    path = bundle / LABELS
    table = pa.table({"id": [f"{number}" for number in range(2)], "text": ["a" * 100_000] * 2})
    dictionary = table.append_column("kind", pa.array(["b" * 100_000] * 2).dictionary_encode())
    for labels in (table, dictionary):
        options = pa.ipc.IpcWriteOptions(compression=codec)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, labels.schema, options=options) as writer:
            writer.write_table(labels)
        with pytest.raises(BundleError, match=r"labels\.arrow is not an Arrow file \(it is compressed\)"):
            LabelTable.open(path)


def test_a_valid_bundle_is_verified_in_a_subprocess(bundle: Path) -> None:
    """If it fails, the report of the child is not that of the bundle."""
    report = verify_in_subprocess(bundle)
    assert (report.queries, report.overlap_at_10, report.passed) == (3, 1.0, True)


@pytest.mark.parametrize(
    ("program", "code", "output"),
    [
        ("import sys; sys.stdout.write('x' * 10_000_000); sys.stderr.write('y' * 10_000_000)", 0, OUTPUT_BYTES),
        ("import os, signal; os.kill(os.getpid(), signal.SIGRTMIN + 1)", -(signal.SIGRTMIN + 1), 0),
        ("import signal; signal.alarm(0); signal.pause()", None, 0),
    ],
)
def test_a_compromised_child_does_not_harm_its_parent(program: str, code: int | None, output: int) -> None:
    """If it fails, a child fills the memory of its parent with output, or lets it wait for ever."""
    seconds = 1 if code is None else 60
    ended, written, errors = run_program([sys.executable, "-c", program], dict(os.environ), seconds)
    assert ended == code
    assert len(written) == len(errors) == output


@pytest.mark.parametrize("output", [b"", b"{", b"5", b"[]", b'{"queries": 1}', b"\xff\n"])
def test_a_child_without_a_report_is_a_refusal(bundle: Path, output: bytes) -> None:
    """If it fails, a child that ends early without an error counts as success, or ends its parent with a traceback."""
    with pytest.raises(BundleError, match=r"words: the process that opened it did not print a report\."):
        verify_in_subprocess(bundle, run=lambda *arguments: (0, output, b""))


def test_a_child_that_a_real_time_signal_ends_is_a_refusal(bundle: Path) -> None:
    """If it fails, a signal without a name ends the parent in a traceback."""
    number = signal.SIGRTMIN + 1
    with pytest.raises(BundleError, match=rf"words ended the process that opened it \(signal {number}\)\."):
        verify_in_subprocess(bundle, run=lambda *arguments: (-number, b"", b""))
