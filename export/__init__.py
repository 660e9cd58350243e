"""Export a checkpoint to a bundle. The last step that needs torch."""

import retrieval  # noqa: F401  # before torch, which imports ONNX Runtime: this import turns its telemetry off
