"""Turn a finished bundle into one whose index is in Milvus.

The gates and the golden answers used the graph of the same vectors, links and candidates per insertion; the server
builds its own.
"""

from pathlib import Path

from retrieval.bundle.golden_answers import GoldenReport
from retrieval.bundle.manifest import INDEX, Manifest, read_manifest
from retrieval.bundle.verified_files import seal_again
from retrieval.errors import GateError
from retrieval.loading import LoadOptions, index_rows
from retrieval.milvus.collection import write_rows
from retrieval.retriever import Retriever
from retrieval.system.progress import Stage


def move_index_to_milvus(folder: Path, parquet: Path | None, stage: Stage) -> GoldenReport:
    """Remove the graph from a bundle and describe the index as one in Milvus; write its rows to `parquet`.

    Returns the golden answers of exact search. Raises GateError if they differ.
    """
    manifest = _describe(folder)
    without_server = LoadOptions(without_server=True)
    with stage("golden answers of exact search"), Retriever.load(folder, without_server) as retriever:
        report = retriever.check_golden()
        if not report.passed:
            raise GateError(f"golden answers: exact search differs from the graph: {report}. Raise --m.")
    if parquet is not None:
        with stage("rows for Milvus"):
            write_rows(index_rows(folder)[1], manifest.index_dim, parquet)
    return report


def _describe(folder: Path) -> Manifest:
    facts = read_manifest(folder).index
    (folder / INDEX).unlink()
    return seal_again(folder, index=facts.model_copy(update={"kind": "milvus"}))
