"""Bundles that are loaded in a process without threads, which is then forked."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from retrieval import open_bundle
from retrieval.bundle.model_file import ALIGNMENT, LARGE_BYTES, large_weights
from retrieval.system.sandbox import child_environment
from tests.support.bundles import make_bundle

ROOT = Path(__file__).resolve().parents[3]
# The child writes its scores with `print`; the parent never starts ONNX Runtime.
PROGRAM = """
import os, sys
from retrieval import open_bundle
from retrieval.errors import BundleError

def threads():
    return len(os.listdir("/proc/self/task"))

retriever = open_bundle(sys.argv[1], threads=2, deferred=True)
try:
    retriever.search(["red shoes"])
except BundleError as error:
    print(error.args[0].rpartition("query_encoder.onnx ")[2], flush=True)
print(threads(), "onnxruntime" in sys.modules, flush=True)
for _ in range(2):
    if os.fork() == 0:
        retriever.start()
        print([hit.score for hit in retriever.search(["red shoes"])[0]], threads() > 1, flush=True)
        os._exit(0)
    os.wait()
"""


def test_forked_processes_search_what_their_parent_loaded(tmp_path: Path) -> None:
    """Engines that share a bundle would hang in threads that they do not have, or give other answers."""
    bundle = make_bundle(tmp_path / "words")
    with open_bundle(bundle) as retriever:
        scores = [hit.score for hit in retriever.search(["red shoes"])[0]]
    environment = child_environment() | {
        "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
        "JE_ARROW_MALLOC_CONF": "background_thread:false",
    }  # fmt: skip
    command = [sys.executable, "-c", PROGRAM, str(bundle)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, env=environment)
    assert ended.returncode == 0, ended.stderr
    unopened, parent, *children = ended.stdout.splitlines()
    assert unopened == "is not open in this process. Call `start` first."
    assert parent == "1 False"
    assert children == [f"{scores} True"] * 2


def test_large_weights_are_copied_by_name(tmp_path: Path) -> None:
    """An engine would compute with other weights than those in its bundle."""
    rng = np.random.default_rng(0)
    rows = LARGE_BYTES // 64
    arrays = {
        "table": rng.standard_normal((rows, 64)).astype(np.float32),
        "codes": rng.integers(-128, 128, (rows, 64), dtype=np.int8),
        "halves": rng.standard_normal((rows, 64)).astype(np.float16),
        "places": np.arange(rows * 64, dtype=np.int64),  # a type that is left out
        "few": np.ones(8, np.float32),
    }
    initializers = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    listed = helper.make_tensor("listed", TensorProto.FLOAT, [LARGE_BYTES], [1.0] * LARGE_BYTES)  # no raw data
    graph = helper.make_graph([], "weights", [], [], [*initializers, listed])
    weights = large_weights(onnx.ModelProto(graph=graph).SerializeToString())
    assert sorted(weights) == ["codes", "halves", "table"]
    for name, array in weights.items():
        assert array.dtype == arrays[name].dtype
        assert array.ctypes.data % ALIGNMENT == 0
        np.testing.assert_array_equal(array, arrays[name])
