"""Quantise the linear layers of the query encoder to int8.

The scales of activations are calibrated here with real texts and then fixed. Dynamic quantisation would compute them
per batch, and a query's vector would depend on the other queries of its batch. Figures: docs/decisions/0026.

Shapes: E input width of a linear layer.
"""

import copy
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import Tensor, nn

from export.encoders import INLINE_LIMIT, quiet
from training.data.token_cache import TokenizedTexts
from training.model.transformer_encoder import TransformerEncoder

TEXTS_PER_BATCH = 64
SMOOTHING = 0.8  # measured in docs/decisions/0026; 0: activations unchanged, 1: all outliers move into the weights
MIN_PEAK = 1e-5  # avoids division by zero for unused columns


class SmoothedLinear(nn.Module):
    """A linear layer with the same output, whose inputs are multiplied by a factor per column (SmoothQuant)."""

    factor_E: Tensor

    def __init__(self, linear: nn.Linear, factor_E: Tensor) -> None:
        super().__init__()
        self.register_buffer("factor_E", factor_E)
        self.weight = nn.Parameter(linear.weight.detach() / factor_E, requires_grad=False)
        self.bias = linear.bias

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.linear(inputs * self.factor_E, self.weight, self.bias)


def smooth(encoder: TransformerEncoder, tokens: TokenizedTexts) -> TransformerEncoder:
    """Return a copy with the same output that loses less accuracy in int8.

    A few columns of a transformer's activations are many times larger than the others, which would then have few
    distinct values on the common scale. So each column is divided by its size, and its weights are multiplied by it
    (SmoothQuant, Xiao et al. 2023).
    """
    copied = copy.deepcopy(encoder).eval()
    copied.transformer.set_attn_implementation("eager")  # type: ignore[operator]  # the same sums, as fewer ONNX nodes
    groups, peaks = _calibrate(copied, tokens)
    for names in groups:
        linears = [copied.get_submodule(name) for name in names]
        weight_E = torch.stack([linear.weight.abs().amax(0) for linear in linears]).amax(0).clamp(min=MIN_PEAK)  # type: ignore[operator]
        # One tensor for all layers with the same input: the exporter then multiplies only once.
        factor_E = (weight_E ** (1.0 - SMOOTHING) / peaks[names[0]].clamp(min=MIN_PEAK) ** SMOOTHING).detach()
        for name, linear in zip(names, linears, strict=True):
            copied.set_submodule(name, SmoothedLinear(linear, factor_E))  # type: ignore[arg-type]
    return copied


@torch.no_grad()
def _calibrate(encoder: TransformerEncoder, tokens: TokenizedTexts) -> tuple[list[list[str]], dict[str, Tensor]]:
    """Return the linear layers grouped by input tensor, and each layer's largest input magnitude per column [E]."""
    linears = {name: module for name, module in encoder.named_modules() if isinstance(module, nn.Linear)}
    inputs: dict[str, Tensor] = {}
    hooks = [linear.register_forward_pre_hook(partial(_record, inputs, name)) for name, linear in linears.items()]
    peaks: dict[str, Tensor] = {}
    groups: dict[int, list[str]] = {}
    for _, batch in tokens.batches_by_length(TEXTS_PER_BATCH):
        encoder(batch.input_ids_BT, batch.attention_mask_BT)
        groups = {}
        for name, tensor in inputs.items():
            peak_E = tensor.abs().flatten(0, -2).amax(0)
            peaks[name] = torch.maximum(peaks[name], peak_E) if name in peaks else peak_E
            groups.setdefault(id(tensor), []).append(name)
    for hook in hooks:
        hook.remove()
    return list(groups.values()), peaks


def _record(inputs: dict[str, Tensor], name: str, _: nn.Module, arguments: tuple[Tensor, ...]) -> None:
    inputs[name] = arguments[0]


def quantize(source: Path, target: Path, tokens: TokenizedTexts) -> None:
    """Write `source` to `target` with its linear layers in int8, one scale per column of weights.

    Embeddings, attention, norms and both heads stay float32. A static encoder has no linear layer, so it is copied.
    """
    graph = onnx.load(source, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2 and min(tensor.dims) > 1}
    linear_layers = [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    if not linear_layers:
        shutil.copyfile(source, target)
        return
    with quiet(None):
        quantize_static(
            source,
            target,
            _CalibrationBatches(tokens),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=linear_layers,
            per_channel=True,
            activation_type=QuantType.QUInt8,  # uint8 activations times int8 weights is the fastest combination on CPUs
            weight_type=QuantType.QInt8,
            use_external_data_format=sum(item.stat().st_size for item in source.parent.iterdir()) > INLINE_LIMIT,
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
        )


class _CalibrationBatches(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Calibration texts in the form that quantize_static reads."""

    def __init__(self, tokens: TokenizedTexts) -> None:
        self._batches = _inputs(tokens)

    def get_next(self) -> dict[str, NDArray[np.int64]] | None:
        return next(self._batches, None)


def _inputs(tokens: TokenizedTexts) -> Iterator[dict[str, NDArray[np.int64]]]:
    for _, batch in tokens.batches_by_length(TEXTS_PER_BATCH):
        yield {"input_ids": batch.input_ids_BT.numpy(), "attention_mask": batch.attention_mask_BT.numpy()}
