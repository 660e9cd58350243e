"""A simple service: sentence-transformers in the handler, hnswlib in the same process.

    python -m benchmarks.peers.naive_service MODEL LABELS_JSONL PORT

Every label is encoded before the port is opened. Runs in a separate environment without Diptych.
"""

import sys
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found]

from benchmarks.peers.label_index import LabelIndex, SearchRequest


def create_app(model_name: str, labels: Path) -> FastAPI:
    """Encode the labels, index them, and answer by encoding the texts of one request at a time."""
    model = SentenceTransformer(model_name, device="cpu")
    index = LabelIndex(labels, lambda texts: model.encode(texts, normalize_embeddings=True, batch_size=64))
    app = FastAPI()

    @app.post("/predict")
    def predict(request: SearchRequest) -> dict[str, Any]:
        return index.answer(request.queries, model.encode(request.queries, normalize_embeddings=True), request.k)

    return app


def main() -> None:
    """Listen on a loopback port until a signal stops the server."""
    model, labels, port = sys.argv[1:]
    uvicorn.run(create_app(model, Path(labels)), host="127.0.0.1", port=int(port), access_log=False, log_level="error")


if __name__ == "__main__":
    main()
