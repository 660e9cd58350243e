"""Algorithm 1's outer lines: epochs, clusters, mining, schedule, validation, checkpoints (UniDEC, section 3).

All randomness is drawn from (seed, purpose, epoch, step), never from a generator that runs along. A run that goes on
from any saved state therefore draws what the uninterrupted run would have drawn, and ends with the same weights.

Shapes: N training queries, Q queries of a batch, P labels of its pool, L labels.
"""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retrieval.errors import TrainingError
from retrieval.system import stopping
from training.batching.batches import Batch, make_batch
from training.batching.clustering import balanced_clusters, random_clusters
from training.batching.hard_negatives import mine_hard_negatives
from training.checkpoint import files as ck
from training.checkpoint.files import Cursor, Record
from training.checkpoint.state import RunState, restore_state, save_state
from training.data.ragged import Ragged
from training.data.training_data import Material
from training.evaluation import scoring as evaluation
from training.evaluation.imputation import KEPT
from training.model.tokens import TokenBatch, TokenizedTexts
from training.model.unified import UnifiedModel
from training.monitoring.callbacks import Listener
from training.monitoring.epoch_stats import Step, Tally, gpu_bytes, resident_bytes
from training.optim import optimizers as optimization
from training.optim.distributed import ALONE, Processes
from training.optim.grad_cache import ChunkedEncoding, Encoding, WholeEncoding
from training.optim.losses import Targets, head_loss
from training.recipe.schema import Recipe

CLUSTERS, ORDER, BATCH, DROPOUT, LABEL_QUERIES = range(5)  # purposes of random numbers


@dataclass(frozen=True)
class Prepared:
    """A batch on the device: the texts of its queries and then of its pool's labels, and which pairs are positive."""

    queries: int
    pool_P: Tensor
    texts: TokenizedTexts
    targets: Targets
    picked: Targets


class Stopped(Exception):
    """The run was asked to stop; its state is saved."""


class Trainer:
    """One run of Algorithm 1 over `material`, writing to `folder`.

    `should_stop` is called after every step: true saves the state and raises Stopped. A signal does the same at once;
    a resumed run repeats the part that was interrupted.
    """

    def __init__(
        self,
        recipe: Recipe,
        material: Material,
        model: UnifiedModel,
        folder: Path,
        device: torch.device,
        listener: Listener,
        should_stop: Callable[[], bool] = lambda: False,
        processes: Processes = ALONE,
    ) -> None:
        self.recipe, self.material, self.folder, self.device = recipe, material, folder, device
        self.listener, self.should_stop, self.processes = listener, should_stop, processes
        self.model = model.to(device)
        self.dense = optimization.dense_optimizer(model, recipe.optimizer)
        self.rates = optimization.row_rates(model, recipe.optimizer)
        self.peaks = optimization.peak_rates(model, recipe.optimizer)
        self.bfloat16 = optimization.uses_bfloat16(recipe, device)
        self.cursor = Cursor()
        self.clusters = Ragged.empty(0)
        self.hard_negative_NH: NDArray[np.int32] | None = None
        self._saved_at = time.monotonic()

    def run(self) -> Cursor:
        """Train from the cursor to the end; returns the final cursor. Raises Stopped when asked to stop."""
        with stopping.deferred():
            try:
                while self.cursor.epoch < self.recipe.optimizer.epochs:
                    self._epoch(self.cursor.epoch)
            except (stopping.StopRequested, KeyboardInterrupt):
                # Only parts that do not change the state are interrupted, so the cursor is right.
                self.save_state()
                raise Stopped from None
            self.save_state()
        return self.cursor

    def _epoch(self, epoch: int) -> None:
        if self.cursor.step == 0 and epoch % self.recipe.batching.refresh_epochs == 0:
            with stopping.interruptible():
                self._refresh(epoch)
        batches = self._batches(epoch)
        while self.cursor.step < len(batches):
            at = self.cursor.step
            step = self.step(epoch, at, len(batches), batches[at])
            self._advance(step.seconds, step=at + 1, taken=step.done, tally=self.cursor.tally.plus(step))
            self.listener.stepped(step, self.cursor.tally)
            self._pause_if_due()
        self._finish_epoch(epoch)

    def _finish_epoch(self, epoch: int) -> None:
        every, last = self.recipe.validation.every_epochs, epoch + 1 == self.recipe.optimizer.epochs
        changes: dict[str, object] = {"epoch": epoch + 1, "step": 0, "tally": Tally()}
        if ((epoch + 1) % every == 0 or last) and self.processes.first:
            with stopping.interruptible():
                record, best = self._validate(epoch)
            self._advance(**changes, best=best, history=(*self.cursor.history, record))
            self.listener.validated(record, best)
        else:
            self._advance(**changes)

    def _advance(self, seconds: float = 0.0, /, **changes: object) -> None:
        self.cursor = self.cursor.model_copy(update={**changes, "seconds": self.cursor.seconds + seconds})

    def _pause_if_due(self) -> None:
        stop = self.processes.any(self.should_stop())
        if stop or time.monotonic() - self._saved_at > 60 * self.recipe.checkpoint_minutes:
            self.save_state()
        if stop:
            raise Stopped

    # ---- clusters and hard negatives

    def _refresh(self, epoch: int) -> None:
        """Cluster the queries and mine their hard negatives with the dual encoder as it is now."""
        started, batching = time.perf_counter(), self.recipe.batching
        # On a GPU sums are taken in any order, so the weights of several processes part in their last bits.
        self.processes.agree(tensor.detach() for tensor in self.model.state_dict().values())
        if not (batching.clustered or batching.hard_negatives):
            return
        self.model.eval()
        rows_R = self._rows(epoch)
        with self.listener.stage("clustering and mining") as progress:
            query_RD = self._dual_vectors(self.material.train_tokens, rows_R)
            label_LD = self._dual_vectors(self.material.label_tokens) if batching.hard_negatives else None
            if self.processes.first:
                self._cluster_and_mine(epoch, rows_R, query_RD, label_LD, progress)
            self._take_over_from_first()
        self._advance(time.perf_counter() - started)

    def _cluster_and_mine(
        self,
        epoch: int,
        rows_R: NDArray[np.int64],
        query_RD: NDArray[np.float32],
        label_LD: NDArray[np.float32] | None,
        progress: Callable[[int, int], object],
    ) -> None:
        batching = self.recipe.batching
        clusters = balanced_clusters(query_RD, batching.batch_size, self._random(CLUSTERS, epoch))
        if batching.clustered:
            self.clusters = Ragged.from_lists([rows_R[cluster] for cluster in clusters])
        if label_LD is not None:
            self.hard_negative_NH = self._hard_negatives(rows_R, query_RD, label_LD, clusters, progress)

    def _take_over_from_first(self) -> None:
        """The batches and hard negatives of process 0: found by each alike, one bit could part them."""
        batching, from_first = self.recipe.batching, self.processes.from_first
        if batching.clustered:
            self.clusters = Ragged(from_first(self.clusters.values), from_first(self.clusters.offsets))
        if batching.hard_negatives:
            mined = self.hard_negative_NH
            self.hard_negative_NH = from_first(np.empty((0, 0), np.int32) if mined is None else mined)

    def _rows(self, epoch: int) -> NDArray[np.int64]:
        """R rows to learn from: every training query, and label queries drawn anew for this stretch of epochs."""
        queries, extra = self.material.queries, len(self.material.train) - self.material.queries
        stretch = epoch - epoch % self.recipe.batching.refresh_epochs
        drawn = self._random(LABEL_QUERIES, stretch).choice(extra, size=self.material.label_queries, replace=False)
        return np.concatenate([np.arange(queries), queries + np.sort(drawn)])

    def _hard_negatives(
        self,
        rows_R: NDArray[np.int64],
        query_RD: NDArray[np.float32],
        label_LD: NDArray[np.float32],
        clusters: list[NDArray[np.int64]],
        progress: Callable[[int, int], object],
    ) -> NDArray[np.int32]:
        """The nearest labels [N, H] that are no positives; −1 throughout for the rows that are not learned from."""
        train, batching = self.material.train, self.recipe.batching
        mined = batching.hard_negatives * batching.refresh_epochs
        not_negative = train.labels.take(rows_R).concat_values(train.exclude.take(rows_R))
        found_NH = np.full((len(train), mined), -1, np.int32)
        found_NH[rows_R] = mine_hard_negatives(query_RD, label_LD, clusters, not_negative, mined, progress)
        return found_NH

    @torch.inference_mode()
    def _dual_vectors(self, tokens: TokenizedTexts, rows_R: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """N(g1 Φ) of the texts `rows_R`, of all when None: every process encodes its share."""
        rows_R = np.arange(len(tokens)) if rows_R is None else rows_R
        order_R = np.argsort(tokens.lengths_N[rows_R], kind="stable")
        own_S = self.processes.own(order_R)
        vectors_SD = np.empty((len(own_S), self.model.dual_dim), np.float32)
        for places, batch in tokens.batches_by_length(evaluation.TEXTS_A_BATCH, rows_R[own_S]):
            batch = batch.to(self.device)
            with self._autocast():
                found = self.model.label_vectors(batch.input_ids_BT, batch.attention_mask_BT)
            vectors_SD[places] = found.float().cpu().numpy()
        vectors_RD = np.empty((len(rows_R), self.model.dual_dim), np.float32)
        vectors_RD[order_R] = self.processes.joined(torch.from_numpy(vectors_SD), len(rows_R)).numpy()
        return vectors_RD

    def _batches(self, epoch: int) -> list[NDArray[np.int64]]:
        """The epoch's batches of queries, in a new order."""
        generator = self._random(ORDER, epoch)
        if self.recipe.batching.clustered:
            batches = [self.clusters[row].astype(np.int64) for row in range(len(self.clusters))]
        else:
            rows_R = self._rows(epoch)
            batches = [
                rows_R[places] for places in random_clusters(len(rows_R), self.recipe.batching.batch_size, generator)
            ]
        return [batches[place] for place in generator.permutation(len(batches))]

    # ---- one step

    def step(self, epoch: int, at: int, of: int, query_Q: NDArray[np.int64]) -> Step:
        """Learn from the batch of these training rows, step `at` of the `of` of its epoch."""
        started, epochs = time.perf_counter(), self.recipe.optimizer.epochs
        # A step can be abandoned until it changes weights; with several processes, only between two steps.
        with stopping.interruptible() if self.processes.size == 1 else nullcontext():
            prepared = self.prepare(epoch, at, query_Q)
            found = self._find_gradients(epoch, at, prepared)
        scale = optimization.schedule(epoch * of + at, epochs * of, self.recipe.optimizer.warmup)
        optimization.apply_step(
            self.model, self.dense, self.rates, scale, self.recipe.optimizer.clip_norm, self.processes
        )
        return Step(
            epoch=epoch + 1, epochs=epochs, number=at + 1, of=of, parts=found,
            queries=len(query_Q), labels=len(prepared.pool_P), positives=len(prepared.targets.row_M),
            rates={name: peak * scale for name, peak in self.peaks.items()},
            seconds=time.perf_counter() - started, memory_bytes=resident_bytes(), gpu_bytes=gpu_bytes(self.device),
        )  # fmt: skip

    def _find_gradients(self, epoch: int, at: int, prepared: Prepared) -> dict[str, float]:
        """Compute the gradients of a step; return the parts of its loss."""
        self.model.train()
        torch.manual_seed(int(self._random(DROPOUT, epoch, at).integers(2**63)))
        encoding = self.processes.encoding(self._encoding, prepared.texts)
        parts = self._loss(prepared, encoding.vectors_BE)
        each = torch.stack(list(parts.values()))
        found = dict(zip(parts, each.tolist(), strict=True))  # the step's one wait for the device
        if not math.isfinite(loss := sum(found.values())):
            raise diverged(f"the loss became {loss} in epoch {epoch + 1}, step {at + 1}")
        each.sum().backward()  # type: ignore[no-untyped-call]
        encoding.backward()
        return found

    def prepare(self, epoch: int, at: int, query_Q: NDArray[np.int64]) -> Prepared:
        """Everything that a step needs before it computes: the pool, the texts, which pairs are positive.

        Without a share of the dual encoder's no label is to be encoded.
        """
        train, labels = self.material.train, self.material.label_tokens
        batch = make_batch(
            query_Q, train.labels, self.material.target_V, train.exclude, self.hard_negative_NH, len(labels),
            self.recipe.batching, self._random(BATCH, epoch, at),
        )  # fmt: skip
        texts = self.material.train_tokens.take(batch.query_Q)
        if self.recipe.loss.dual_encoder_share > 0:
            texts = texts.followed_by(labels.take(batch.pool_P))
        targets, picked = self._targets(batch)
        return Prepared(len(query_Q), torch.from_numpy(batch.pool_P).to(self.device), texts, targets, picked)

    def _encoding(self, texts: TokenizedTexts) -> Encoding:
        if at_once := self.recipe.batching.texts_at_once:
            return ChunkedEncoding(self._encode, texts, at_once, self.device)
        return WholeEncoding(self._encode, texts, self.device)

    def _encode(self, tokens: TokenBatch) -> Tensor:
        with self._autocast():
            encoded_BE: Tensor = self.model.encoder(tokens.input_ids_BT, tokens.attention_mask_BT)
        return encoded_BE.float()

    def _loss(self, prepared: Prepared, encoded_BE: Tensor) -> dict[str, Tensor]:
        """The parts, `head/direction/term`, that add up to L = λ·L_D + (1−λ)·L_C (UniDEC, section 3).

        A head whose share is 0 costs nothing.
        """
        losses, share, queries = self.recipe.loss, self.recipe.loss.dual_encoder_share, prepared.queries
        targets, picked = prepared.targets, prepared.picked
        parts: dict[str, Tensor] = {}
        if share > 0:
            dual_BD = self.model.dual_vectors(encoded_BE)
            scores_QP = dual_BD[:queries] @ dual_BD[queries:].T
            dual = head_loss(scores_QP, targets, picked, losses.dual_encoder)
            parts |= {f"dual_encoder/{name}": share * part for name, part in dual.items()}
        if share < 1:
            row_PC = self.model.classifier.take(prepared.pool_P)
            scores_QP = self.model.classifier_head(encoded_BE[:queries]) @ row_PC.T
            classifier = head_loss(scores_QP, targets, picked, losses.classifier)
            parts |= {f"classifier/{name}": (1 - share) * part for name, part in classifier.items()}
        return parts

    def _targets(self, batch: Batch) -> tuple[Targets, Targets]:
        """Every positive of the batch, and the one picked for each query."""
        shape = (len(batch.query_Q), len(batch.pool_P))
        row_M, column_M = self._on_device(batch.positive_row_M, batch.positive_column_M)
        positive_QP = torch.zeros(shape, dtype=torch.bool, device=self.device)
        positive_QP[row_M, column_M] = True
        ignored_QP = None
        if len(batch.ignored_row):
            ignored_QP = torch.zeros(shape, dtype=torch.bool, device=self.device)
            ignored_QP[self._on_device(batch.ignored_row, batch.ignored_column)] = True
        target_M = None if batch.target_M is None else torch.from_numpy(batch.target_M).to(self.device)
        targets = Targets(positive_QP, row_M, column_M, ignored_QP, target_M)
        return targets, targets.of(*self._on_device(batch.picked_row_O, batch.picked_column_O))

    def _on_device(self, *arrays: NDArray[np.int64]) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(array).to(self.device) for array in arrays)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bfloat16)

    def _random(self, purpose: int, *counters: int) -> np.random.Generator:
        return np.random.default_rng([self.recipe.seed, purpose, *counters])

    # ---- validation and state

    def _validate(self, epoch: int) -> tuple[Record, Record]:
        """Evaluate on the validation queries, choose w, and save the weights if they are the best so far.

        Returns the record of this epoch and of the best one. Does not change the run's state.
        """
        self._refuse_broken_weights()
        material, tally = self.material, self.cursor.tally
        self.model.eval()
        queries = evaluation.encode_queries(self.model, material.validation_tokens, self.device)
        labels = evaluation.encode_labels(self.model, material.label_tokens, material.positives_L, self.device, KEPT[0])
        chosen_by, exclude = self.recipe.validation, material.validation.exclude
        truth, inverse = material.validation.labels, material.inverse_propensity_L
        grid = [evaluation.Blend(w, b) for w in self.recipe.weights for b in (chosen_by.popularities if w else (0.0,))]
        blend, _ = evaluation.choose_blend(
            evaluation.rank(queries, labels, grid, exclude), truth, inverse, chosen_by.metrics
        )
        kept, score = evaluation.choose_kept(queries, labels, blend, exclude, truth, inverse, chosen_by.metrics)
        exact = list(evaluation.by_head(blend).values())
        rankings = evaluation.rank(queries, labels, exact, exclude, searched=exact)
        record = Record(
            epoch=epoch + 1, loss=tally.loss, seconds=self.cursor.seconds, score=score,
            classifier_weight=blend.weight, popularity=blend.popularity, kept=kept,
            figures=evaluation.figures_by_head(rankings, blend, truth, inverse), tally=tally,
        )  # fmt: skip
        best = self.cursor.best
        if best is None or record.score > best.score:
            ck.save_best(self.folder, self.model, material.positives_L, inverse, record)
            best = record
        return record, best

    def save_state(self) -> None:
        """Write everything needed to go on exactly from here, as one file; process 0 does."""
        if not self.processes.first:
            return
        self._refuse_broken_weights()
        save_state(self.folder, self.model, self.dense, RunState(self.cursor, self.clusters, self.hard_negative_NH))
        self._saved_at = time.monotonic()

    def _refuse_broken_weights(self) -> None:
        """A step may break the weights though its own loss was finite; they must not replace what was saved before."""
        for name, tensor in self.model.state_dict().items():
            if not torch.isfinite(tensor.sum()):
                raise diverged(f"the weights '{name}' are no numbers any more after epoch {self.cursor.epoch + 1}")

    def restore_state(self) -> None:
        """Go back to where `save_state` left off; CheckpointError when the file does not fit."""
        state = restore_state(self.folder, self.model, self.dense, self.recipe, len(self.material.train))
        self.cursor, self.clusters, self.hard_negative_NH = state.cursor, state.clusters, state.hard_negative_NH


def diverged(how: str) -> TrainingError:
    """The error of a run whose numbers left the range of numbers."""
    return TrainingError(
        f"{how}. Train into another --out with lower rates (--set optimizer.token_lr=… and the other optimizer.*_lr) "
        "or a higher loss.*.temperature; what was saved before is kept."
    )
