"""Checkpoint → bundle: the last place that needs torch."""

import retrieval  # noqa: F401  # before torch, which imports ONNX Runtime: it is told there to report nothing
