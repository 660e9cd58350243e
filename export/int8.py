"""The query encoder in int8: only what its linear maps read and multiply with, so that hardly an answer changes.

Scales of what is read are fixed here from real texts, not found anew in each batch: a query's vector must not depend on
which other queries were asked with it. Why and how well: docs/decisions/0026.

Shapes: E width of what a linear map reads.
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

TEXTS_A_BATCH = 64
SMOOTHING = 0.8  # measured in docs/decisions/0026; 0 leaves all unevenness in what is read, 1 puts all into the weights
LEAST = 1e-5  # keeps a column that is never used from being divided by zero


class SmoothedLinear(nn.Module):
    """A linear map of the same result, which reads each column times a factor."""

    factor_E: Tensor

    def __init__(self, linear: nn.Linear, factor_E: Tensor) -> None:
        super().__init__()
        self.register_buffer("factor_E", factor_E)
        self.weight = nn.Parameter(linear.weight.detach() / factor_E, requires_grad=False)
        self.bias = linear.bias

    def forward(self, read: Tensor) -> Tensor:
        return nn.functional.linear(read * self.factor_E, self.weight, self.bias)


def smoothed(encoder: TransformerEncoder, tokens: TokenizedTexts) -> TransformerEncoder:
    """A copy that gives the same vectors and loses less when what its linear maps read becomes one byte a number.

    A few columns of what a transformer's layers hand on are many times larger than all others, and one scale for all
    would leave the others hardly a digit. So each column is divided by its size, and its weights multiplied by it.
    """
    copied = copy.deepcopy(encoder).eval()
    copied.transformer.set_attn_implementation("eager")  # type: ignore[operator]  # the same sums, as fewer ONNX nodes
    groups, peaks = _what_they_read(copied, tokens)
    for names in groups:
        linears = [copied.get_submodule(name) for name in names]
        weight_E = torch.stack([one.weight.abs().amax(0) for one in linears]).amax(0).clamp(min=LEAST)  # type: ignore[operator]
        # One tensor for all that read the same: the exporter then multiplies once for them all.
        factor_E = (weight_E ** (1.0 - SMOOTHING) / peaks[names[0]].clamp(min=LEAST) ** SMOOTHING).detach()
        for name, linear in zip(names, linears, strict=True):
            copied.set_submodule(name, SmoothedLinear(linear, factor_E))  # type: ignore[arg-type]
    return copied


@torch.no_grad()
def _what_they_read(encoder: TransformerEncoder, tokens: TokenizedTexts) -> tuple[list[list[str]], dict[str, Tensor]]:
    """Linear maps in groups that read the same tensor, and the largest magnitude of each column [E] that one reads."""
    linears = {name: one for name, one in encoder.named_modules() if isinstance(one, nn.Linear)}
    read: dict[str, Tensor] = {}
    hooks = [one.register_forward_pre_hook(partial(_note, read, name)) for name, one in linears.items()]
    peaks: dict[str, Tensor] = {}
    groups: dict[int, list[str]] = {}
    for _, batch in tokens.batches_by_length(TEXTS_A_BATCH):
        encoder(batch.input_ids_BT, batch.attention_mask_BT)
        groups = {}
        for name, tensor in read.items():
            peak_E = tensor.abs().flatten(0, -2).amax(0)
            peaks[name] = torch.maximum(peaks[name], peak_E) if name in peaks else peak_E
            groups.setdefault(id(tensor), []).append(name)
    for hook in hooks:
        hook.remove()
    return list(groups.values()), peaks


def _note(read: dict[str, Tensor], name: str, _: nn.Module, given: tuple[Tensor, ...]) -> None:
    read[name] = given[0]


def quantize(source: Path, target: Path, tokens: TokenizedTexts) -> None:
    """Write `source` with the linear maps of its layers in int8, a scale for each column of weights.

    Embeddings, attention, norms and the two heads stay float32. A static encoder has nothing to quantise: it stays all.
    """
    graph = onnx.load(source, load_external_data=False).graph
    weights = {one.name for one in graph.initializer if len(one.dims) == 2 and min(one.dims) > 1}
    linear_maps = [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    if not linear_maps:
        shutil.copyfile(source, target)
        return
    with quiet(None):
        quantize_static(
            source,
            target,
            _Batches(tokens),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=linear_maps,
            per_channel=True,
            activation_type=QuantType.QUInt8,  # by int8 weights: the pair that processors multiply fastest
            weight_type=QuantType.QInt8,
            use_external_data_format=sum(item.stat().st_size for item in source.parent.iterdir()) > INLINE_LIMIT,
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
        )


class _Batches(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """The texts that the scales are found from, as quantize_static asks for them."""

    def __init__(self, tokens: TokenizedTexts) -> None:
        self._batches = _inputs(tokens)

    def get_next(self) -> dict[str, NDArray[np.int64]] | None:
        return next(self._batches, None)


def _inputs(tokens: TokenizedTexts) -> Iterator[dict[str, NDArray[np.int64]]]:
    for _, batch in tokens.batches_by_length(TEXTS_A_BATCH):
        yield {"input_ids": batch.input_ids_BT.numpy(), "attention_mask": batch.attention_mask_BT.numpy()}
