"""CascadeXML: one classifier per level of a label tree, each on [CLS] of its own transformer layers.

    f_r = [CLS] of the layers of level r; several layers are concatenated and projected to the width of one
    s_r = ⟨W_r, dropout_r(f_r)⟩ + b_r        scores of the nodes of level r; the last level has the labels

The rows of the labels, with their biases, are one table that the row-wise optimizer updates; AdamW updates the rest
(Kharbanda et al. 2022).

Shapes: B texts, T tokens of the longest text, F width of the encoder (all layers that a level reads), E width of a
level's feature, D width of a query vector, L labels, S labels of the shard, N nodes of a level, M children of a node
at most, U nodes.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from retrieval.search.label_tree import LabelTree
from training.model import pretrained
from training.model.label_shard import ALL_LABELS, LabelShard
from training.model.row_table import RowTable
from training.model.transformer_encoder import LayerEncoder
from training.model.unified import UnifiedModel
from training.recipe.schema import Recipe
from training.recipe.sections import CascadeRecipe, TransformerEncoderRecipe

Int32Array = NDArray[np.int32]
LABELS_PER_DRAW = 65_536  # rows drawn at once, of which a process keeps those of its shard


class Levels(nn.Module):
    """Classifiers and tree of all levels.

    `rows` [N, E] and `bias` [N] are those of the clusters, `labels` [S, E + 1] those of the shard's labels, the bias
    last.
    Biases start at the log-odds of one true node among a query's candidates: from 0 they would need most of a short run
    to fall that far. `parent` has, for each level but the first, the node of the level above over each node, int32 [N].
    """

    def __init__(
        self,
        parents: Sequence[Int32Array],
        n_clusters: Sequence[int],
        shortlist: Sequence[int],
        width: int,
        shard: LabelShard = ALL_LABELS,
    ):
        super().__init__()
        sizes = [*n_clusters, len(parents[-1])]
        bias = [-math.log(count) for count in candidate_counts(sizes, shortlist)]
        self.rows = nn.ParameterList(nn.init.xavier_uniform_(torch.empty(size, width)) for size in n_clusters)
        self.bias = nn.ParameterList(torch.full((size,), bias[level]) for level, size in enumerate(n_clusters))
        self.labels = RowTable(F.pad(_initial_rows(sizes[-1], width, shard), (0, 1), value=bias[-1]), shard)
        self.parent = nn.Module()
        for level, parent_N in enumerate(parents, 1):
            self.parent.register_buffer(str(level), torch.from_numpy(parent_N))


class CascadeModel(nn.Module):
    """One transformer, and a classifier per level of the label tree `parents`.

    `level_dims` is the width of each level's part of a query vector, `shortlist` the number of nodes to keep per level.
    `shard` are the labels whose rows this process holds; `label_table` is their table's name in the state dict.
    """

    adds_text = False  # the table of the labels has whole rows
    label_table = "cascade.labels"

    def __init__(
        self,
        encoder: LayerEncoder,
        recipe: CascadeRecipe,
        parents: Sequence[Int32Array],
        shard: LabelShard = ALL_LABELS,
    ) -> None:
        super().__init__()
        self.encoder, self.recipe, self.shard = encoder, recipe, shard
        self.n_labels, self.shortlist = len(parents[-1]), recipe.shortlist
        width = encoder.width // len(encoder.layers)
        self.level_dims = (width + 1,) * len(recipe.layers)
        self.projections = nn.ModuleDict(
            {str(level): _projection(len(layers), width, recipe) for level, layers in enumerate(recipe.layers)
             if len(layers) > 1}
        )  # fmt: skip
        self.cascade = Levels(parents, recipe.clusters, recipe.shortlist, width, shard)
        self._child_tables: list[Tensor] = []

    @property
    def n_levels(self) -> int:
        """Return the number of levels, that of the labels included."""
        return len(self.level_dims)

    @property
    def parents(self) -> tuple[Int32Array, ...]:
        """Return the parent of each node, int32 [N], of all levels but the first."""
        return tuple(self._parent(level).cpu().numpy() for level in range(1, self.n_levels))

    def child_nodes(self, level: int) -> Tensor:
        """Return the nodes of `level` below each node of the level above, int64 [N, M], padded with −1."""
        if not self._child_tables:
            tree = LabelTree.of(self.parents, len(self.cascade.bias[0]))
            tables = [children_table(tree, above) for above in range(tree.levels - 1)]
            self._child_tables = [torch.from_numpy(table_NM).to(self._parent(1).device) for table_NM in tables]
        return self._child_tables[level - 1]

    def ancestors(self, label_V: Tensor) -> list[Tensor]:
        """Return the node of each level over the labels, int64 [V] per level; the last ones are the labels."""
        nodes = [label_V]
        for level in range(self.n_levels - 1, 0, -1):
            nodes.insert(0, self._parent(level)[nodes[0]].long())
        return nodes

    def features(self, encoded_BF: Tensor) -> list[Tensor]:
        """Return the feature of each level [B, E] from [CLS] of all layers, without the levels' own dropout."""
        by_layer = dict(zip(self.encoder.layers, encoded_BF.chunk(len(self.encoder.layers), dim=1), strict=True))
        features = []
        for level, layers in enumerate(self.recipe.layers):
            feature_BE = torch.cat([by_layer[layer] for layer in layers], dim=1)
            features.append(self.projections[str(level)](feature_BE) if len(layers) > 1 else feature_BE)
        return features

    def logits(self, level: int, feature_BE: Tensor, node_U: Tensor | None) -> Tensor:
        """Return the scores [B, U] of distinct nodes of a level, before the sigmoid; None: of all clusters."""
        feature_BE = F.dropout(feature_BE, self.recipe.dropout[level], self.training)
        if level == self.n_levels - 1:
            assert node_U is not None, "a batch scores some labels"
            row_UE = self.cascade.labels.take(node_U)
            return F.linear(feature_BE, row_UE[:, :-1], row_UE[:, -1])
        rows_NE, bias_N = self.cascade.rows[level], self.cascade.bias[level]
        if node_U is None:
            return F.linear(feature_BE, rows_NE, bias_N)
        return F.linear(feature_BE, rows_NE.index_select(0, node_U), bias_N.index_select(0, node_U))

    def query_vectors(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        """Return [f_r ; 1] of all levels, concatenated [B, D], given token ids and mask, int64 [B, T]."""
        features = self.features(self.encoder(input_ids_BT, attention_mask_BT).float())
        return torch.cat([F.pad(feature_BE, (0, 1), value=1.0) for feature_BE in features], dim=1)

    def level_rows(self, label_rows: Tensor | None = None) -> tuple[NDArray[np.float32], ...]:
        """Return the rows of each level with their biases last, float32 [N, E + 1].

        `label_rows` are those of all labels; None: this process has all.
        """
        labels = self.cascade.labels.weight if label_rows is None else label_rows
        clusters = (
            torch.cat([rows_NE, bias_N.unsqueeze(1)], dim=1).detach()
            for rows_NE, bias_N in zip(self.cascade.rows, self.cascade.bias, strict=True)
        )
        return tuple(rows.float().cpu().numpy() for rows in (*clusters, labels))

    def trained_labels(self, positives_L: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of the shard's labels have a training positive, bool [S]; the others are only ever negatives."""
        trained_S: NDArray[np.bool_] = positives_L[self.shard.labels(self.n_labels).numpy()] > 0
        return trained_S

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the weights of the projections and of the clusters' classifiers."""
        yield from self.projections.parameters()
        yield from self.cascade.parameters()

    def row_tables(self) -> dict[str, RowTable]:
        """Return the table that the row-wise optimizer updates: the rows of the labels."""
        return {"classifier": self.cascade.labels}

    def inference_state_dict(self) -> dict[str, Tensor]:
        """Return the state dict."""
        return self.state_dict()

    def _parent(self, level: int) -> Tensor:
        return self.cascade.parent.get_buffer(str(level))


Model = UnifiedModel | CascadeModel


def has_label_rows(model: Model, name: str) -> bool:
    """Return whether the tensor `name` of the model's state dict has one row per label of the model's shard."""
    return name.startswith(f"{model.label_table}.")


def init_cascade(recipe: Recipe, parents: Sequence[Int32Array], shard: LabelShard = ALL_LABELS) -> CascadeModel:
    """Return a pretrained transformer with untrained classifiers, initialized from the recipe's seed.

    Raises RecipeError if the transformer cannot be loaded or has fewer layers than the recipe reads.
    """
    assert recipe.cascade is not None
    assert isinstance(recipe.encoder, TransformerEncoderRecipe)
    torch.manual_seed(recipe.seed)
    encoder = _encoder(pretrained.transformer(recipe.encoder), recipe.cascade)
    return CascadeModel(encoder, recipe.cascade, parents, shard)


def cascade_skeleton(
    recipe: Recipe, n_labels: int, config_folder: Path, shard: LabelShard = ALL_LABELS
) -> CascadeModel:
    """Return a model whose weights and tree will be loaded; the transformer's shape comes from its saved config."""
    assert recipe.cascade is not None
    encoder = _encoder(pretrained.transformer_skeleton(config_folder), recipe.cascade)
    parents = [np.zeros(count, np.int32) for count in (*recipe.cascade.clusters[1:], n_labels)]
    return CascadeModel(encoder, recipe.cascade, parents, shard)


def candidate_counts(sizes: Sequence[int], shortlist: Sequence[int]) -> list[int]:
    """Return how many nodes of each level a query is compared with: all of the first, then children of shortlists."""
    pairs = zip(shortlist, pairwise(sizes), strict=True)
    return [sizes[0], *(min(listed, above) * size // above for listed, (above, size) in pairs)]


def children_table(tree: LabelTree, level: int) -> NDArray[np.int64]:
    """Return the children of each node of a level in ascending order, int64 [N, M], padded with −1."""
    count_N = np.diff(tree.starts[level])
    table_NM = np.full((len(count_N), int(count_N.max())), -1, np.int64)
    table_NM[np.arange(table_NM.shape[1]) < count_N[:, None]] = tree.children[level]
    return table_NM


def _initial_rows(n_labels: int, width: int, shard: LabelShard) -> Tensor:
    """Draw the rows of all labels (Xavier), block by block, and return those of the shard [S, E]."""
    bound, kept = math.sqrt(6.0 / (n_labels + width)), []
    for start in range(0, n_labels, LABELS_PER_DRAW):
        label_B = torch.arange(start, min(start + LABELS_PER_DRAW, n_labels))
        rows_BE = torch.empty(len(label_B), width).uniform_(-bound, bound)
        kept.append(rows_BE[shard.positions(label_B)])
    return torch.cat(kept)


def _encoder(transformer: nn.Module, recipe: CascadeRecipe) -> LayerEncoder:
    return LayerEncoder(transformer, sorted({layer for layers in recipe.layers for layer in layers}))


def _projection(n_layers: int, width: int, recipe: CascadeRecipe) -> nn.Sequential:
    linear = nn.Linear(n_layers * width, width)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.Dropout(recipe.projection_dropout), linear)
