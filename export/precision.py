"""A query encoder of less precision, int8 for processors or float16 for GPUs: kept only where its answers are as good.

The label encoder stays float32: labels are encoded once, at export, and an exact label side costs nothing to serve.

Shapes: N texts, D vector width, L labels.
"""

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
from torch import Tensor, nn

from export.encoders import write_query_encoder
from export.gates import LABELS, sample
from export.geometry import Cone, bias
from export.int8 import quantize, smoothed
from export.quality import Validation
from retrieval.bundle.facts import ModelFacts, Precision, Reduced, Speed
from retrieval.bundle.manifest import QUERY_ENCODER, TOKENIZER, VECTORS
from retrieval.errors import GateError
from retrieval.search.encoder import TextEncoder
from retrieval.search.indexes import ExactIndex, Vectors
from training.checkpoint.files import Checkpoint
from training.model.tokens import tokenize_in_memory
from training.model.unified import TransformerEncoder, UnifiedModel

PRECISION_LOSS = 0.5  # points of P@1 that less precision may cost
LEAST_SPEEDUP = 2.0  # of int8, on one thread, in the geometric mean over the batch sizes
BATCHES = (1, 64)  # a service that is not busy, and one that is
ROUNDS, QUERIES_A_ROUND = 9, 128


class HalfEncoder(nn.Module):
    """An encoder in float16, whose mean vector leaves it as float32: the heads and unit lengths stay exact."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).half()

    def forward(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        mean_BE: Tensor = self.encoder(input_ids_BT, attention_mask_BT)
        return mean_BE.float()


def reduce_precision(
    checkpoint: Checkpoint, model: ModelFacts, cone: Cone, precision: Precision, queries: Sequence[str], folder: Path
) -> Reduced:
    """Put an encoder of less precision in the place of the float32 one that a bundle's folder has, and measure both.

    Raises GateError, with the figures of both, where it answers too much worse or is not fast enough.
    """

    def opened() -> TextEncoder:
        return TextEncoder.open(folder / TOKENIZER, folder / QUERY_ENCODER, model, model.dim, threads=1)

    float32 = opened()
    with TemporaryDirectory(dir=folder) as aside:
        _write(checkpoint, cone, precision, queries, Path(aside))
        for old in folder.glob(f"{QUERY_ENCODER}*"):
            old.unlink()
        for new in Path(aside).glob(f"{QUERY_ENCODER}*"):
            new.rename(folder / new.name)
    vectors_LD = np.load(folder / VECTORS, mmap_mode="r", allow_pickle=False)
    reduced = _measure(checkpoint, model, float32, opened(), vectors_LD, timed=precision == "int8")
    prove_worth(reduced, precision)
    return reduced


def prove_worth(reduced: Reduced, precision: Precision) -> None:
    """Raise GateError where P@1 falls by more than PRECISION_LOSS points, or it is not LEAST_SPEEDUP times as fast.

    One hit is always forgiven: over a few hundred queries it moves P@1 by more than that.
    """
    lost = reduced.float32_p_at_1 - reduced.p_at_1
    worse = lost > max(PRECISION_LOSS, 100 / reduced.queries) + 1e-9
    if not worse and (reduced.times is None or reduced.times >= LEAST_SPEEDUP):
        return
    figures = [
        f"P@1 is {reduced.p_at_1:.2f} where float32 has {reduced.float32_p_at_1:.2f} ({PRECISION_LOSS} less is allowed)"
    ]
    figures += [
        f"one thread encodes {one.reduced:,.0f} queries a second in batches of {one.batch}, float32 {one.float32:,.0f}"
        for one in reduced.speeds
    ]
    if reduced.times is not None:
        figures.append(f"that is {reduced.times:.2f} times as fast in the mean ({LEAST_SPEEDUP:g} times is needed)")
    raise GateError(f"{precision} is not worth it here: {'; '.join(figures)}. Export with --precision float32.")


def _write(checkpoint: Checkpoint, cone: Cone, precision: Precision, queries: Sequence[str], folder: Path) -> None:
    """Write query_encoder.onnx in that precision; int8 finds its scales from queries and label texts."""
    model, own = checkpoint.model, checkpoint.model.encoder
    if precision == "float16":
        with _answering_through(HalfEncoder(own), model):
            write_query_encoder(model, cone, bias(checkpoint), folder / QUERY_ENCODER)
        return
    texts = [*queries, *sample(checkpoint.labels.column("text"), LABELS)]
    tokens = tokenize_in_memory(texts, checkpoint.tokenizer)
    even = smoothed(own, tokens) if isinstance(own, TransformerEncoder) else own
    with TemporaryDirectory(dir=folder) as aside, _answering_through(even, model):
        write_query_encoder(model, cone, bias(checkpoint), Path(aside) / QUERY_ENCODER)
        quantize(Path(aside) / QUERY_ENCODER, folder / QUERY_ENCODER, tokens)


@contextmanager
def _answering_through(encoder: nn.Module, model: UnifiedModel) -> Iterator[None]:
    """The model with another encoder for a while: a copy of it would copy the classifier's rows, a row a label."""
    own = model.encoder
    model.encoder = encoder  # type: ignore[assignment]  # it maps what they map
    try:
        yield
    finally:
        model.encoder = own


def _measure(
    checkpoint: Checkpoint, model: ModelFacts, float32: TextEncoder, reduced: TextEncoder, vectors_LD: Vectors,
    *, timed: bool,
) -> Reduced:  # fmt: skip
    """Cosines, P@1 by exact search and, where `timed`, speeds of two encoders, on the validation queries."""
    asked, exact = Validation(checkpoint), ExactIndex(vectors_LD)
    scale_D = model.query_scale(checkpoint.classifier_weight)
    exact_ND, own_ND = (one.encode(asked.texts).vectors_BD * scale_D for one in (float32, reduced))
    p_at_1 = [asked.figures(exact.search(query_ND, asked.k)[0])["P@1"] for query_ND in (exact_ND, own_ND)]
    lengths_N = np.linalg.norm(exact_ND, axis=1) * np.linalg.norm(own_ND, axis=1)
    cosine_N = np.einsum("nd,nd->n", exact_ND, own_ND) / lengths_N
    return Reduced(
        queries=asked.scored,
        least_cosine=float(cosine_N.min()),
        mean_cosine=float(cosine_N.mean()),
        float32_p_at_1=p_at_1[0],
        p_at_1=p_at_1[1],
        speeds=tuple(_speed(float32, reduced, asked.texts, batch) for batch in BATCHES) if timed else (),
    )


def _speed(float32: TextEncoder, reduced: TextEncoder, texts: Sequence[str], batch: int) -> Speed:
    """Medians over rounds in turn, in the thread's own seconds: what else the machine does counts little."""
    asked = list(islice(cycle(texts), QUERIES_A_ROUND))
    batches = [asked[start : start + batch] for start in range(0, len(asked), batch)]
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for encoder, spent in zip((float32, reduced), seconds, strict=True):
            started = time.thread_time()
            for one in batches:
                encoder.encode(one)
            spent.append(time.thread_time() - started)
    exact, own = (len(asked) / median(spent) for spent in seconds)
    return Speed(batch=batch, float32=exact, reduced=own)
