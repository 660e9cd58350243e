"""Export the two ONNX encoders of a bundle.

Shapes: B texts, T tokens of the longest of them, C width of the classifier vector (its bias included).
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from export.geometry import Cone
from retrieval.bundle.manifest import LABEL_ENCODER, QUERY_ENCODER
from training.model.cascade import CascadeModel
from training.model.unified import UnifiedModel

OPSET = 20
INLINE_LIMIT = 1_900_000_000  # bytes; a protobuf file is limited to 2 GiB, larger weights go into a separate file


class QueryEncoder(nn.Module):
    """Map token ids and mask to [unit dual vector ; classifier vector and bias, stretched along the labels' cone].

    Without a classifier, the vector has its first half only.
    """

    direction_C1: Tensor
    bias_11: Tensor

    def __init__(self, model: UnifiedModel, cone: Cone, bias: float) -> None:
        super().__init__()
        self.register_buffer("bias_11", torch.full((1, 1), bias))
        self.model = model
        self.register_buffer("direction_C1", torch.from_numpy(cone.direction_C)[:, None])
        self.stretch = 1.0 / cone.shrink - 1.0

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        if self.model.classifier_head is None:
            return self.model.label_vectors(input_ids, attention_mask)
        dual_BD, unit_BC = self.model.query_vectors(input_ids, attention_mask)
        classifier_BC = torch.cat([unit_BC, self.bias_11.expand(unit_BC.shape[0], 1)], dim=-1)
        along_B1 = classifier_BC @ self.direction_C1
        return torch.cat([dual_BD, classifier_BC + self.stretch * along_B1 * self.direction_C1.T], dim=-1)


class CascadeQueryEncoder(nn.Module):
    """Map token ids and mask to [f_r ; 1] of all levels."""

    def __init__(self, model: CascadeModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model.query_vectors(input_ids, attention_mask)


class LabelEncoder(nn.Module):
    """Map token ids and mask of label texts to their unit dual vector."""

    def __init__(self, model: UnifiedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model.label_vectors(input_ids, attention_mask)


def write_encoders(model: UnifiedModel, cone: Cone, bias: float, folder: Path) -> None:
    """Write query_encoder.onnx and label_encoder.onnx, with dynamic batch size and length."""
    write_query_encoder(model, cone, bias, folder / QUERY_ENCODER)
    _write(LabelEncoder(model), folder / LABEL_ENCODER)


def write_query_encoder(model: UnifiedModel, cone: Cone, bias: float, path: Path) -> None:
    """Write the query encoder only."""
    _write(QueryEncoder(model, cone, bias), path)


def write_cascade_encoder(model: CascadeModel, path: Path) -> None:
    """Write the query encoder of a cascade, with dynamic batch size and length."""
    _write(CascadeQueryEncoder(model), path)


def _write(encoder: QueryEncoder | CascadeQueryEncoder | LabelEncoder, path: Path) -> None:
    # Two different sizes above 1: torch.export treats 0 and 1, and equal sizes, as constants of the model.
    ids_BT = torch.ones(3, 5, dtype=torch.int64)
    dynamic = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    weights = encoder.model.encoder.state_dict().values()
    with quiet("torch.onnx"):
        program = torch.onnx.export(
            encoder.eval(),
            (ids_BT, torch.ones_like(ids_BT)),
            dynamo=True,
            opset_version=OPSET,
            input_names=["input_ids", "attention_mask"],
            output_names=["vectors"],
            dynamic_shapes={"input_ids": dynamic, "attention_mask": dynamic},
            verbose=False,
        )
        assert program is not None, "dynamo=True returns a program"
        for node in program.model.graph:
            node.metadata_props.clear()  # stack traces with the paths of the source files on this machine
        program.save(path, external_data=sum(tensor.nbytes for tensor in weights) > INLINE_LIMIT)


@contextmanager
def quiet(name: str | None) -> Iterator[None]:
    """Silence warnings and a logger (None: the root logger) of an exporter; the gates check its result."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
