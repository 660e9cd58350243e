"""Packages that importing each part must not load, checked in a new process."""

import json
import subprocess
import sys

import pytest

HEAVY = ["torch", "transformers", "safetensors", "onnx", "onnxscript"]


def modules_after(statement: str) -> set[str]:
    """Return the top-level names of all modules that a new interpreter has loaded after a statement."""
    program = (
        f"{statement}\nimport json, sys\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "statement",
    [
        "from retrieval import Retriever, Hit, Store",
        "import retrieval.commands",
        "import retrieval.search.encoder, retrieval.bundle.golden_answers, retrieval.search.indexes, retrieval.metrics",
        "import service.app, service.engine.client, service.commands",
    ],
)
def test_serving_needs_no_torch(statement: str) -> None:
    """If it fails, a server image needs gigabytes of training packages to start."""
    assert not modules_after(statement) & set(HEAVY)


@pytest.mark.parametrize(
    "statement", ["import retrieval", "import retrieval.metrics, retrieval.errors, retrieval.search.indexes"]
)
def test_base_modules_load_no_large_package(statement: str) -> None:
    """If it fails, training needs ONNX Runtime, or importing a metric costs a second."""
    assert not modules_after(statement) & {*HEAVY, "onnxruntime", "tokenizers", "pyarrow", "pydantic"}


def test_reading_tables_needs_no_model() -> None:
    """If it fails, training needs ONNX Runtime to read its sources, or a query file needs a bundle's packages."""
    statement = "import retrieval.offline.query_files, retrieval.tables.table, retrieval.tables.parquet"
    assert not modules_after(statement) & {*HEAVY, "onnxruntime", "tokenizers", "hnswlib"}


@pytest.mark.parametrize(
    "statement",
    ["import retrieval.retriever, retrieval.open, retrieval.milvus.host", "import service.app", "import export.build"],
)
def test_only_a_server_of_milvus_needs_its_client(statement: str) -> None:
    """If it fails, every user needs the extra `milvus`, or a service without Milvus loads its client."""
    assert not modules_after(statement) & {"pymilvus", "grpc", "pandas"}


@pytest.mark.parametrize("module", ["retrieval.commands", "export.commands"])
def test_help_is_quick(module: str) -> None:
    """If it fails, `--help` loads numerical packages before it prints a line."""
    assert not modules_after(f"import {module}") & {*HEAVY, "onnxruntime", "numpy", "pyarrow", "pydantic"}
