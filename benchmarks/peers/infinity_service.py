"""A service with infinity-emb's engine, which batches the texts of concurrent requests, and hnswlib in one process.

    python -m benchmarks.peers.infinity_service MODEL LABELS_JSONL PORT

Both are in one process because that is faster than two servers. Every label is encoded before the port is opened. Runs
in a separate environment without Diptych.
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

os.environ |= {"INFINITY_ANONYMOUS_USAGE_STATS": "0", "HF_HUB_OFFLINE": "1"}  # set before the import: no network access

import uvicorn
from fastapi import FastAPI
from infinity_emb import AsyncEmbeddingEngine, EngineArgs  # type: ignore[import-not-found]

from benchmarks.peers.label_index import LabelIndex, SearchRequest, Vectors

LABELS_PER_BATCH = 1024


async def serve(model: str, labels: Path, port: int) -> None:
    """Answer requests until a signal stops the server."""
    engine = AsyncEmbeddingEngine.from_args(EngineArgs(model_name_or_path=model, engine="torch", device="cpu"))
    async with engine:
        loop = asyncio.get_running_loop()

        def encode(texts: list[str]) -> Vectors:
            parts = [texts[start : start + LABELS_PER_BATCH] for start in range(0, len(texts), LABELS_PER_BATCH)]
            vectors = [asyncio.run_coroutine_threadsafe(embed(part), loop).result() for part in parts]
            return np.concatenate(vectors)

        async def embed(texts: list[str]) -> Vectors:
            vectors, _ = await engine.embed(texts)
            return np.stack(vectors).astype(np.float32)

        index = await asyncio.to_thread(LabelIndex, labels, encode)
        app = FastAPI()

        @app.post("/predict")
        async def predict(request: SearchRequest) -> dict[str, Any]:
            return index.answer(request.queries, await embed(request.queries), request.k)

        quiet: dict[str, Any] = {"access_log": False, "log_level": "error"}
        await uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, **quiet)).serve()


def main() -> None:
    """Listen on a loopback port until a signal stops the server."""
    model, labels, port = sys.argv[1:]
    asyncio.run(serve(model, Path(labels), int(port)))


if __name__ == "__main__":
    main()
