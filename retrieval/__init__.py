"""The bundle as a Python library: open one and search it, without torch and without a server.

from retrieval import open_bundle
open_bundle("store").search(["cheap running shoes"], k=10)
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# ONNX Runtime reads it when it is imported. Unset, newer builds keep a device id in the home folder and report models.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from retrieval.open import open_bundle, open_store
    from retrieval.results import Hit, SearchResults
    from retrieval.retriever import Retriever
    from retrieval.store.local import Store

__all__ = ["Hit", "Retriever", "SearchResults", "Store", "open_bundle", "open_store"]

_MODULES = {
    "Hit": "retrieval.results",
    "Retriever": "retrieval.retriever",
    "SearchResults": "retrieval.results",
    "Store": "retrieval.store.local",
    "open_bundle": "retrieval.open",
    "open_store": "retrieval.open",
}


def __getattr__(name: str) -> Any:
    # Imported on first use: training imports only some modules of this package, and has no ONNX Runtime.
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'retrieval' has no attribute {name!r}")
