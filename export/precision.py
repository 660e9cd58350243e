"""Gate "precision": replace the query encoder by one in int8 (for CPUs) or float16 (for GPUs) if it is good enough.

The label encoder stays float32: labels are encoded once, at export, so a smaller label encoder saves nothing.

Shapes: N texts, D vector width, L labels.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
from torch import Tensor, nn

from export.int8 import quantize, smooth
from export.quality import ValidationQueries
from export.sampling import MAX_LABELS, sample
from retrieval.bundle.facts import ModelFacts, Precision, Reduced, Speed
from retrieval.bundle.manifest import QUERY_ENCODER, TOKENIZER
from retrieval.errors import GateError
from retrieval.search.encoder import TextEncoder
from retrieval.search.indexes import Rows, Vectors
from training.checkpoint.opened import Checkpoint
from training.data.token_cache import tokenize_in_memory
from training.evaluation.results import MetricValues
from training.model.cascade import Model
from training.model.transformer_encoder import LayerEncoder, TransformerEncoder

MAX_PRECISION_LOSS = 0.5  # points of P@1 that reduced precision may cost
MIN_SPEEDUP = 2.0  # of int8 on one thread, geometric mean over the batch sizes
BATCHES = (1, 64)  # an idle service, and a busy one
ROUNDS, QUERIES_PER_ROUND = 9, 128


class HalfEncoder(nn.Module):
    """An encoder in float16 that returns its vector in float32: heads and normalisation stay exact."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).half()
        if isinstance(encoder, LayerEncoder):
            self.layers = encoder.layers

    def forward(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        encoded_BE: Tensor = self.encoder(input_ids_BT, attention_mask_BT)
        return encoded_BE.float()


WriteEncoder = Callable[[Path], None]  # write the query encoder of the checkpoint's model as it is now
RankExactly = Callable[[Vectors, float, int], Rows]  # (encoded queries, weight, k): the best rows by exact search


def reduce_precision(
    checkpoint: Checkpoint, model: ModelFacts, precision: Precision, queries: Sequence[str], folder: Path,
    write: WriteEncoder, rank: RankExactly,
) -> Reduced:  # fmt: skip
    """Replace the float32 query encoder in a bundle's folder by one of reduced precision, and measure both.

    Raises GateError if P@1 falls too much or the speed-up is too small.
    """

    def open_encoder() -> TextEncoder:
        return TextEncoder.open(folder / TOKENIZER, folder / QUERY_ENCODER, model, model.dim, threads=1)

    float32 = open_encoder()
    with TemporaryDirectory(dir=folder) as staging:
        _write(checkpoint, precision, queries, Path(staging), write)
        for old in folder.glob(f"{QUERY_ENCODER}*"):
            old.unlink()
        for new in Path(staging).glob(f"{QUERY_ENCODER}*"):
            new.rename(folder / new.name)
    reduced = _measure(checkpoint, model, float32, open_encoder(), rank, timed=precision == "int8")
    check_precision(reduced, precision)
    return reduced


def check_precision(reduced: Reduced, precision: Precision) -> None:
    """Raise GateError if P@1 falls by more than MAX_PRECISION_LOSS points or the speed-up is below MIN_SPEEDUP.

    One hit is always tolerated: over a few hundred queries it changes P@1 by more than that.
    """
    lost = reduced.float32_p_at_1 - reduced.p_at_1
    worse = lost > max(MAX_PRECISION_LOSS, 100 / reduced.queries) + 1e-9
    if not worse and (reduced.times is None or reduced.times >= MIN_SPEEDUP):
        return
    measured = [
        f"P@1 is {reduced.p_at_1:.2f}, with float32 {reduced.float32_p_at_1:.2f} (at most {MAX_PRECISION_LOSS} points "
        "less is allowed)"
    ]
    measured += [
        f"one thread encodes {speed.reduced:,.0f} queries per second in batches of {speed.batch}, "
        f"with float32 {speed.float32:,.0f}"
        for speed in reduced.speeds
    ]
    if reduced.times is not None:
        measured.append(f"the mean speed-up is {reduced.times:.2f} (at least {MIN_SPEEDUP:g} is required)")
    raise GateError(
        f"precision: {precision} has no benefit for this model: {'; '.join(measured)}. Export with --precision float32."
    )


def _write(
    checkpoint: Checkpoint, precision: Precision, queries: Sequence[str], folder: Path, write: WriteEncoder
) -> None:
    """Write query_encoder.onnx in that precision; int8 is calibrated with queries and label texts."""
    model, encoder = checkpoint.model, checkpoint.model.encoder
    if precision == "float16":
        with replaced_encoder(model, HalfEncoder(encoder)):
            write(folder / QUERY_ENCODER)
        return
    texts = [*queries, *sample(checkpoint.labels.column("text"), MAX_LABELS)]
    tokens = tokenize_in_memory(texts, checkpoint.tokenizer)
    smoothed = smooth(encoder, tokens) if isinstance(encoder, TransformerEncoder) else encoder
    with TemporaryDirectory(dir=folder) as staging, replaced_encoder(model, smoothed):
        write(Path(staging) / QUERY_ENCODER)
        quantize(Path(staging) / QUERY_ENCODER, folder / QUERY_ENCODER, tokens)


@contextmanager
def replaced_encoder(model: Model, encoder: nn.Module) -> Iterator[None]:
    """Use another encoder in the model for a while; a copy of the model would copy the classifier's rows."""
    original = model.encoder
    model.encoder = encoder  # type: ignore[assignment]  # it maps what they map
    try:
        yield
    finally:
        model.encoder = original


def _measure(
    checkpoint: Checkpoint, model: ModelFacts, float32: TextEncoder, reduced: TextEncoder, rank: RankExactly,
    *, timed: bool,
) -> Reduced:  # fmt: skip
    """Measure cosines, P@1 by exact search and, if `timed`, speeds of two encoders on the validation queries."""
    validation = ValidationQueries(checkpoint)
    encoded = [encoder.encode(validation.texts).vectors_BD for encoder in (float32, reduced)]

    def metrics(vectors_ND: Vectors) -> MetricValues:
        def search(weight: float, k: int) -> Rows:
            return rank(vectors_ND, weight, k)

        return validation.metrics(search)

    scale_D = model.query_scale(checkpoint.classifier_weight)
    float32_ND, reduced_ND = (vectors_ND * scale_D for vectors_ND in encoded)
    lengths_N = np.linalg.norm(float32_ND, axis=1) * np.linalg.norm(reduced_ND, axis=1)
    cosine_N = np.einsum("nd,nd->n", float32_ND, reduced_ND) / lengths_N
    return Reduced(
        queries=validation.scored,
        least_cosine=float(cosine_N.min()),
        mean_cosine=float(cosine_N.mean()),
        float32_p_at_1=metrics(encoded[0])["P@1"],
        p_at_1=metrics(encoded[1])["P@1"],
        speeds=tuple(_speed(float32, reduced, validation.texts, batch) for batch in BATCHES) if timed else (),
    )


def _speed(float32: TextEncoder, reduced: TextEncoder, texts: Sequence[str], batch: int) -> Speed:
    """Measure both encoders in turn: medians of the thread's CPU time, which other load hardly changes."""
    queries = list(islice(cycle(texts), QUERIES_PER_ROUND))
    batches = [queries[start : start + batch] for start in range(0, len(queries), batch)]
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for encoder, spent in zip((float32, reduced), seconds, strict=True):
            started = time.thread_time()
            for texts_of_batch in batches:
                encoder.encode(texts_of_batch)
            spent.append(time.thread_time() - started)
    float32_speed, reduced_speed = (len(queries) / median(spent) for spent in seconds)
    return Speed(batch=batch, float32=float32_speed, reduced=reduced_speed)
