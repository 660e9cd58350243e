"""infinity-emb's engine, which gathers the texts of concurrent requests into batches, and hnswlib in the same process.

    python -m benchmarks.peers.infinity_service MODEL LABELS_JSONL PORT

Without a second server between the two, which is the fastest way to join them. Every label is encoded before the port
is opened. It runs in an environment of its own and imports nothing of ours.
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

os.environ |= {"INFINITY_ANONYMOUS_USAGE_STATS": "0", "HF_HUB_OFFLINE": "1"}  # before it is imported: nothing goes out

import uvicorn
from fastapi import FastAPI
from infinity_emb import AsyncEmbeddingEngine, EngineArgs  # type: ignore[import-not-found]

from benchmarks.peers.label_index import LabelIndex, SearchRequest, Vectors

LABELS_AT_ONCE = 1024


async def served(model: str, labels: Path, port: int) -> None:
    """Answer until a signal says stop."""
    engine = AsyncEmbeddingEngine.from_args(EngineArgs(model_name_or_path=model, engine="torch", device="cpu"))
    async with engine:
        loop = asyncio.get_running_loop()

        def encode(texts: list[str]) -> Vectors:
            parts = [texts[start : start + LABELS_AT_ONCE] for start in range(0, len(texts), LABELS_AT_ONCE)]
            found = [asyncio.run_coroutine_threadsafe(embedded(part), loop).result() for part in parts]
            return np.concatenate(found)

        async def embedded(texts: list[str]) -> Vectors:
            vectors, _ = await engine.embed(texts)
            return np.stack(vectors).astype(np.float32)

        index = await asyncio.to_thread(LabelIndex, labels, encode)
        app = FastAPI()

        @app.post("/predict")
        async def predict(asked: SearchRequest) -> dict[str, Any]:
            return index.answer(asked.queries, await embedded(asked.queries), asked.k)

        quiet: dict[str, Any] = {"access_log": False, "log_level": "error"}
        await uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, **quiet)).serve()


def main() -> None:
    """Listen on a loopback port until a signal says stop."""
    model, labels, port = sys.argv[1:]
    asyncio.run(served(model, Path(labels), int(port)))


if __name__ == "__main__":
    main()
