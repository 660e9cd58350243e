"""The bundle as a Python library: open one and search it, without torch and without a server.

from retrieval import Retriever
Retriever.open("store").search(["cheap running shoes"], k=10)
"""

import os
from typing import TYPE_CHECKING, Any

# ONNX Runtime reads it when it is imported. Unset, newer builds keep a device id in the home folder and report models.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from retrieval.retriever import Hit, Retriever
    from retrieval.store.local import Store

__all__ = ["Hit", "Retriever", "Store"]


def __getattr__(name: str) -> Any:
    # Imported on first use: training imports only some modules of this package, and has no ONNX Runtime.
    if name == "Store":
        from retrieval.store.local import Store

        return Store
    if name in __all__:
        from retrieval import retriever

        return getattr(retriever, name)
    raise AttributeError(f"module 'retrieval' has no attribute {name!r}")
