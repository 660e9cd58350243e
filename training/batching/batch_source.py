"""Batches of a run: clusters, hard negatives and label queries, refreshed every few epochs (UniDEC, Algorithm 1).

Shapes: N training rows, R rows of an epoch, Q queries of a batch, L labels, D width of the dual encoder's vectors, H
hard negatives per query.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval.system.progress import Progress, Stage
from training.batching.batches import make_batch
from training.batching.clustering import balanced_clusters, random_clusters
from training.batching.device_batch import build_cascade_batch, build_device_batch
from training.batching.hard_negatives import cluster_centres, labels_near, mine_hard_negatives, nearest_clusters
from training.batching.training_data import TrainingData
from training.data.ragged import Ragged
from training.data.token_cache import TEXTS_PER_BATCH, TokenizedTexts
from training.model.cascade import CascadeModel, Model, has_label_rows
from training.model.device import autocast, uses_bfloat16
from training.model.unified import UnifiedModel
from training.optim.cascade_loss import CascadeBatch
from training.optim.distributed import SINGLE_PROCESS, Processes
from training.optim.random_streams import Stream, random_generator
from training.optim.training_step import DeviceBatch
from training.recipe.schema import Recipe


@dataclass(frozen=True)
class Mined:
    """Result of a refresh: clusters of training rows, and hard negatives [N, H], padded with −1; None: not mined."""

    clusters: Ragged
    hard_negative_NH: NDArray[np.int32] | None


NOTHING_MINED = Mined(Ragged.empty(0), None)


class BatchSource:
    """Draws the batches of each epoch. `mined` is the last refresh; it is part of a run's saved state."""

    def __init__(
        self,
        recipe: Recipe,
        data: TrainingData,
        model: Model,
        device: torch.device,
        mined: Mined = NOTHING_MINED,
        processes: Processes = SINGLE_PROCESS,
    ) -> None:
        self.recipe, self.data, self.model, self.device = recipe, data, model, device
        self.mined, self.processes = mined, processes
        self._bfloat16 = uses_bfloat16(recipe, device)

    def epoch_batches(self, epoch: int) -> list[NDArray[np.int64]]:
        """Return the training rows of each batch of an epoch, in a new random order."""
        generator = random_generator(self.recipe.seed, Stream.ORDER, epoch)
        if self.recipe.batching.clustered:
            clusters = self.mined.clusters
            batches = [clusters[row].astype(np.int64) for row in range(len(clusters))]
        else:
            rows_R = self._rows(epoch)
            batches = [
                rows_R[members] for members in random_clusters(len(rows_R), self.recipe.batching.batch_size, generator)
            ]
        return [batches[position] for position in generator.permutation(len(batches))]

    def device_batch(self, epoch: int, step: int, query_Q: NDArray[np.int64]) -> DeviceBatch | CascadeBatch:
        """Sample positives and hard negatives for the rows `query_Q` and copy the batch to the device.

        A cascade uses all positives and selects its negatives in the step.
        """
        if isinstance(self.model, CascadeModel):
            return build_cascade_batch(query_Q, self.data, self.device)
        train = self.data.train
        batch = make_batch(
            query_Q, train.labels, self.data.target_V, train.exclude, self.mined.hard_negative_NH,
            len(self.data.label_tokens), self.recipe.batching,
            random_generator(self.recipe.seed, Stream.BATCH, epoch, step), self.data.clicks,
        )  # fmt: skip
        # Without the dual encoder's loss and without ψ from texts no label text is encoded.
        encode_labels = self.recipe.loss.dual_encoder_share > 0 or self.recipe.rows_from_text
        return build_device_batch(batch, self.data, self.device, encode_labels=encode_labels)

    def refresh_due(self, epoch: int) -> bool:
        """Return whether clusters and hard negatives must be refreshed before this epoch."""
        return epoch % self.recipe.batching.refresh_epochs == 0

    def refresh(self, epoch: int, stage: Stage) -> None:
        """Cluster the queries and mine hard negatives with the current dual encoder, if the recipe needs them."""
        # GPUs add in varying order, so the weights of the processes drift apart in their last bits.
        # Rows ψ are in one process only.
        whole = (each for name, each in self.model.state_dict().items() if not has_label_rows(self.model, name))
        self.processes.broadcast_(tensor.detach() for tensor in whole)
        if not (self.recipe.batching.clustered or self.recipe.batching.hard_negatives):
            return
        self.model.eval()
        rows_R = self._rows(epoch)
        with stage("clustering and mining") as progress:
            query_RD = self._dual_vectors(self.data.train_tokens, rows_R)
            label_LD = self._dual_vectors(self.data.label_tokens) if self.recipe.batching.hard_negatives else None
            members = self._clusters(epoch, query_RD)
            clusters, hard_negative_NH = Ragged.empty(0), None
            if self.recipe.batching.clustered:
                clusters = Ragged(rows_R[members.values].astype(np.int32), members.offsets)
            if label_LD is not None:
                hard_negative_NH = self._mine(rows_R, query_RD, label_LD, members, progress)
            self.mined = Mined(clusters, hard_negative_NH)

    def _clusters(self, epoch: int, query_RD: NDArray[np.float32]) -> Ragged:
        """Cluster the queries in rank zero; return the members of each cluster as rows of `query_RD` in all."""
        clusters = Ragged.empty(0)
        with self.processes.interruptible():
            if self.processes.is_rank_zero:
                generator = random_generator(self.recipe.seed, Stream.CLUSTERS, epoch)
                lists = balanced_clusters(query_RD, self.recipe.batching.batch_size, generator)
                lengths_K = np.array([len(cluster) for cluster in lists], np.int64)
                clusters = Ragged.from_lengths(np.concatenate(lists).astype(np.int64), lengths_K)
        broadcast = self.processes.broadcast_array
        return Ragged(broadcast(clusters.values.astype(np.int64)), broadcast(clusters.offsets))

    def _mine(
        self,
        rows_R: NDArray[np.int64],
        query_RD: NDArray[np.float32],
        label_LD: NDArray[np.float32],
        members: Ragged,
        progress: Progress,
    ) -> NDArray[np.int32]:
        """Return the nearest labels of each training row that are not positive, [N, H]; −1 for rows not in `rows_R`.

        Each process finds the clusters near to some labels, and mines for the queries of some clusters.
        """
        batching, train, processes = self.recipe.batching, self.data.train, self.processes
        count = batching.hard_negatives * batching.refresh_epochs
        clusters = [members[cluster].astype(np.int64) for cluster in range(len(members))]
        with processes.interruptible():
            centre_KD = cluster_centres(query_RD, clusters)
            cluster_SF = nearest_clusters(centre_KD, label_LD[processes.rank :: processes.world_size])
        cluster_LF = processes.all_gather_rows(torch.from_numpy(cluster_SF), len(label_LD)).numpy()
        mined_RH = np.full((len(rows_R), count), -1, np.int32)
        with processes.interruptible():
            near = labels_near(cluster_LF, len(clusters), processes.rank, processes.world_size)
            not_negative = train.labels.take(rows_R).concat_values(train.exclude.take(rows_R))
            mine = clusters[processes.rank :: processes.world_size]
            mined_RH = mine_hard_negatives(query_RD, label_LD, mine, near, not_negative, count, progress)
        hard_negative_NH = np.full((len(train), count), -1, np.int32)
        hard_negative_NH[rows_R] = processes.maximum(torch.from_numpy(mined_RH)).numpy()  # −1 in all but one process
        return hard_negative_NH

    def _rows(self, epoch: int) -> NDArray[np.int64]:
        """Return the rows of an epoch: training queries, and label queries drawn once per refresh period.

        With an equal budget, they are the same sample of both in every epoch (Gandalf, Table 1.2).
        """
        n_queries, n_label_queries = self.data.n_queries, len(self.data.train) - self.data.n_queries
        rows = self.recipe.batching.label_queries.epoch
        if rows == "equal_budget":
            generator = random_generator(self.recipe.seed, Stream.LABEL_QUERIES, 0)
            return np.sort(generator.choice(len(self.data.train), size=n_queries, replace=False))
        refresh_epoch = epoch - epoch % self.recipe.batching.refresh_epochs
        generator = random_generator(self.recipe.seed, Stream.LABEL_QUERIES, refresh_epoch)
        drawn = generator.choice(n_label_queries, size=self.data.label_queries_per_epoch, replace=False)
        queries = np.zeros(0, np.int64) if rows == "only" else np.arange(n_queries)
        return np.concatenate([queries, n_queries + np.sort(drawn)])

    @torch.inference_mode()
    def _dual_vectors(self, tokens: TokenizedTexts, rows_R: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Encode the texts `rows_R` (None: all) with the dual encoder, float32 [R, D]; each process encodes a shard."""
        model = self.model
        assert isinstance(model, UnifiedModel), "a cascade mines no negatives"
        rows_R = np.arange(len(tokens)) if rows_R is None else rows_R
        order_R = np.argsort(tokens.lengths_N[rows_R], kind="stable")
        shard_S = self.processes.shard(order_R)
        vectors_SD = np.empty((len(shard_S), model.dual_dim), np.float32)
        with self.processes.interruptible():
            for positions, batch in tokens.batches_by_length(TEXTS_PER_BATCH, rows_R[shard_S]):
                batch = batch.to(self.device)
                with autocast(self.device, bfloat16=self._bfloat16):
                    dual_BD = model.label_vectors(batch.input_ids_BT, batch.attention_mask_BT)
                vectors_SD[positions] = dual_BD.float().cpu().numpy()
        vectors_RD = np.empty((len(rows_R), model.dual_dim), np.float32)
        vectors_RD[order_R] = self.processes.all_gather_rows(torch.from_numpy(vectors_SD), len(rows_R)).numpy()
        return vectors_RD
