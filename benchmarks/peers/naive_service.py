"""The service that most people would write: sentence-transformers in the handler, hnswlib in the same process.

    python -m benchmarks.peers.naive_service MODEL LABELS_JSONL PORT

LABELS_JSONL has a label a line: {"id": …, "text": …}. Every label is encoded before the port is opened. It runs in an
environment of its own and imports nothing of ours.
"""

import json
import sys
from pathlib import Path
from typing import Any

import hnswlib
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, Field
from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found]

LINKS, CONSTRUCTION, SEARCH = 32, 200, 100  # of the index: as `diptych export` builds by default; ef at search


class Asked(BaseModel):
    """Texts to find labels for."""

    queries: list[str] = Field(min_length=1, max_length=256)
    k: int = Field(10, ge=1, le=100)


def create_app(model_name: str, labels: list[dict[str, Any]]) -> FastAPI:
    """Encode the labels, index them, and answer by encoding the texts of one request at a time."""
    model = SentenceTransformer(model_name, device="cpu")
    vectors_LE = model.encode([label["text"] for label in labels], normalize_embeddings=True, batch_size=64)
    index = hnswlib.Index(space="ip", dim=vectors_LE.shape[1])
    index.init_index(len(labels), M=LINKS, ef_construction=CONSTRUCTION)
    index.add_items(vectors_LE)
    index.set_ef(SEARCH)
    app = FastAPI()

    @app.post("/predict")
    def predict(asked: Asked) -> dict[str, Any]:
        queries_QE = model.encode(asked.queries, normalize_embeddings=True)
        rows_QK, distances_QK = index.knn_query(queries_QE, k=asked.k)
        return {
            "results": [
                {"query": query, "hits": [
                    {**labels[row], "score": 1 - float(distance)} for row, distance in zip(rows, distances, strict=True)
                ]}
                for query, rows, distances in zip(asked.queries, rows_QK, distances_QK, strict=True)
            ]
        }  # fmt: skip

    return app


def main() -> None:
    """Listen on a loopback port until a signal says stop."""
    model, labels, port = sys.argv[1:]
    read = [json.loads(line) for line in Path(labels).read_text(encoding="utf-8").splitlines()]
    uvicorn.run(create_app(model, read), host="127.0.0.1", port=int(port), access_log=False, log_level="error")


if __name__ == "__main__":
    main()
