"""One training step: encode the batch, compute the loss, backpropagate, update (UniDEC, section 3; CascadeXML).

Shapes: Q queries, P labels of the pool, B texts (queries, then labels), E width of the encoder, D and C widths of the
dual encoder's and the classifier's vectors.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from training.data.token_cache import TokenBatch, TokenizedTexts
from training.model.cascade import CascadeModel, Model
from training.model.device import autocast, uses_bfloat16
from training.model.unified import UnifiedModel
from training.optim.cascade_loss import CascadeBatch, cascade_loss
from training.optim.distributed import SINGLE_PROCESS, Processes
from training.optim.divergence import divergence_error
from training.optim.grad_cache import DirectEncoding, Encoding, GradCacheEncoding, ShardedEncoding
from training.optim.losses import Targets, head_loss
from training.optim.optimizers import Optimizers, learning_rate_scale, three_phase_scale
from training.optim.random_streams import Stream, random_generator
from training.optim.step_stats import StepIndex
from training.recipe.schema import Recipe
from training.recipe.sections import LossesRecipe


@dataclass(frozen=True)
class DeviceBatch:
    """A batch on the device: pool and targets as tensors, texts as token ids.

    `texts` are the queries, followed by the labels of the pool unless the dual encoder's weight λ is 0. `picked` are
    the targets with one positive per query. `dual` are both for the dual encoder, if they differ.
    """

    n_queries: int
    pool_P: Tensor
    texts: TokenizedTexts
    targets: Targets
    picked: Targets
    dual: tuple[Targets, Targets] | None = None

    @property
    def n_labels(self) -> int:
        """Return the number of labels that each query is compared with."""
        return len(self.pool_P)

    @property
    def n_positives(self) -> int:
        """Return the number of positive pairs in the pool."""
        return len(self.targets.row_M)


class TrainingStep:
    """Computes gradients and updates the weights of `model`, which is on `device`."""

    def __init__(
        self,
        model: Model,
        optimizers: Optimizers,
        recipe: Recipe,
        device: torch.device,
        processes: Processes = SINGLE_PROCESS,
    ) -> None:
        self.model, self.optimizers, self.recipe = model, optimizers, recipe
        self.device, self.processes = device, processes
        self._bfloat16 = uses_bfloat16(recipe, device)

    def backward(self, batch: DeviceBatch | CascadeBatch, index: StepIndex) -> dict[str, float]:
        """Compute the gradients of the batch's loss; return the loss by `head/direction/term`.

        Raises TrainingError if the loss is NaN or Inf. Does not change the weights.
        """
        self.model.train()
        generator = random_generator(self.recipe.seed, Stream.DROPOUT, index.epoch, index.step)
        torch.manual_seed(int(generator.integers(2**63)))
        encoding = self._encode(batch.texts)
        terms = self._loss_terms(batch, encoding.vectors_BE)
        stacked = torch.stack(list(terms.values()))
        losses = dict(zip(terms, stacked.tolist(), strict=True))  # the only synchronization with the device per step
        if not math.isfinite(loss := sum(losses.values())):
            raise divergence_error(f"the loss is {loss} in epoch {index.epoch + 1}, step {index.step + 1}")
        stacked.sum().backward()  # type: ignore[no-untyped-call]
        encoding.backward()
        return losses

    def update(self, index: StepIndex) -> dict[str, float]:
        """Update all weights along their gradients; return the learning rates."""
        scale = rate_scale(index, self.recipe)
        self.optimizers.step(scale)
        return {name: peak * scale for name, peak in self.optimizers.peak_rates.items()}

    def _encode(self, texts: TokenizedTexts) -> Encoding:
        """Encode all texts; with several processes, each encodes its shard."""
        if self.processes.world_size > 1:
            return ShardedEncoding(self.processes, self._encode_here, texts)
        return self._encode_here(texts)

    def _encode_here(self, texts: TokenizedTexts) -> Encoding:
        if chunk_size := self.recipe.batching.grad_cache_chunk:
            return GradCacheEncoding(self._encoder_forward, texts, chunk_size, self.device)
        return DirectEncoding(self._encoder_forward, texts, self.device)

    def _encoder_forward(self, tokens: TokenBatch) -> Tensor:
        with autocast(self.device, bfloat16=self._bfloat16):
            encoded_BE: Tensor = self.model.encoder(tokens.input_ids_BT, tokens.attention_mask_BT)
        return encoded_BE.float()

    def _loss_terms(self, batch: DeviceBatch | CascadeBatch, encoded_BE: Tensor) -> dict[str, Tensor]:
        """Return the terms of the loss by `head/direction/term`."""
        match self.model, batch:
            case CascadeModel() as model, CascadeBatch():
                return cascade_loss(model, batch, encoded_BE)
            case UnifiedModel() as model, DeviceBatch():
                return unified_loss(model, self.recipe.loss, batch, encoded_BE)
        raise TypeError(f"a batch of {type(batch).__name__} for {type(self.model).__name__}")


def rate_scale(index: StepIndex, recipe: Recipe) -> float:
    """Return the learning rate of a step as a share of its peak: in three phases for a cascade, else two."""
    if (cascade := recipe.cascade) is not None:
        return three_phase_scale(
            index.done, index.total, index.steps_per_epoch, cascade.warmup_epochs, cascade.final_epochs
        )
    return learning_rate_scale(index.done, index.total, recipe.optimizer.warmup)


def unified_loss(
    model: UnifiedModel, losses: LossesRecipe, batch: DeviceBatch, encoded_BE: Tensor
) -> dict[str, Tensor]:
    """Return the terms of L = λ·L_D + (1−λ)·L_C by `head/direction/term` (UniDEC, section 3).

    A head whose weight is 0 is not computed.
    """
    dual_share, n_queries = losses.dual_encoder_share, batch.n_queries
    terms: dict[str, Tensor] = {}
    if dual_share > 0:
        dual_BD = model.dual_vectors(encoded_BE)
        scores_QP = dual_BD[:n_queries] @ dual_BD[n_queries:].T
        targets, picked = batch.dual or (batch.targets, batch.picked)
        dual = head_loss(scores_QP, targets, picked, losses.dual_encoder)
        terms |= {f"dual_encoder/{name}": dual_share * term for name, term in dual.items()}
    if model.classifier is not None:
        row_PC = model.classifier.take(batch.pool_P)
        if model.adds_text:
            row_PC = row_PC + model.classifier_vectors(encoded_BE[n_queries:])
        scores_QP = model.classifier_vectors(encoded_BE[:n_queries]) @ row_PC.T
        classifier = head_loss(scores_QP, batch.targets, batch.picked, losses.classifier)
        terms |= {f"classifier/{name}": (1 - dual_share) * term for name, term in classifier.items()}
    return terms
