"""The unified model: encoder Φ, heads g1 and g2, classifier rows ψ (UniDEC, section 3).

    Φ_D(x) = N(dropout(tanh(W1 Φ(x))))      dual encoder: vectors of queries and label texts
    Φ_C(x) = dropout(W2 Φ(x))               classifier: vectors of queries; one row ψ_l per label

With `heads.label_rows: text`, ψ_l = W2 Φ(z_l) + η_l, and the trained table has the residuals η (SiameseXML). A finished
checkpoint has the sums ψ. If only the dual encoder is trained (DePSL, Query2Bid), g2 and ψ are not allocated, and Φ_C
and ψ have width 0.

Shapes: B texts, T tokens of the longest text, D width of the dual encoder's vectors, C of the classifier's, E of the
encoder, L labels, S labels of the shard, V tokens of the vocabulary.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from training.data.token_cache import TEXTS_PER_BATCH, TokenizedTexts
from training.model import pretrained
from training.model.label_shard import ALL_LABELS, LabelShard
from training.model.row_table import RowTable
from training.model.static_encoder import StaticEncoder, pretrained_vectors, random_vectors, rarity_weights
from training.model.subword_ngrams import SubwordVectors, shared_ngrams, subword_vectors
from training.model.token_table import set_known_vectors, shipped_table, table_vectors
from training.model.transformer_encoder import TransformerEncoder
from training.recipe.schema import Recipe
from training.recipe.sections import HeadRecipe, StaticEncoderRecipe, TransformerEncoderRecipe


class Head(nn.Module):
    """g1 or g2: a linear layer, with tanh for the dual encoder."""

    def __init__(self, width: int, recipe: HeadRecipe, *, tanh: bool) -> None:
        super().__init__()
        self.dim = recipe.dim or width
        self.linear = nn.Linear(width, self.dim)
        nn.init.orthogonal_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.dropout = nn.Dropout(recipe.dropout)
        self.tanh = tanh

    def forward(self, encoded_BE: Tensor) -> Tensor:
        """Project [B, E] to [B, dim], without normalization."""
        projected_BD = self.linear(encoded_BE)
        dropped: Tensor = self.dropout(torch.tanh(projected_BD) if self.tanh else projected_BD)
        return dropped


class UnifiedModel(nn.Module):
    """One encoder, two heads, and the classifier's rows ψ.

    `classifier` has ψ without normalization; `query_vectors` and `label_vectors` return normalized vectors for search.
    `classifier_head` and `classifier` are None if only the dual encoder is trained. `adds_text` says whether
    `classifier` has residuals η, to which Φ_C of the label texts must be added. `shard` are the labels whose rows this
    process holds; `label_table` is the table's name in the state dict.
    """

    classifier_head: Head | None
    classifier: RowTable | None
    label_table = "classifier"

    def __init__(
        self,
        encoder: StaticEncoder | TransformerEncoder,
        recipe: Recipe,
        n_labels: int,
        shard: LabelShard = ALL_LABELS,
    ) -> None:
        super().__init__()
        self.encoder, self.shard = encoder, shard
        self.n_labels, self.rows_from_text, self.adds_text = n_labels, recipe.rows_from_text, recipe.rows_from_text
        self.dual_head = Head(encoder.width, recipe.heads.dual_encoder, tanh=True)
        self.dual_dim, self.classifier_dim = self.dual_head.dim, 0
        self.classifier_head, self.classifier = None, None
        if recipe.has_classifier:
            self.classifier_head = Head(encoder.width, recipe.heads.classifier, tanh=False)
            self.classifier_dim = self.classifier_head.dim
            dtype = getattr(torch, recipe.optimizer.classifier_rows)
            rows_SC = torch.zeros(shard.size(n_labels), self.classifier_dim, dtype=dtype)
            self.classifier = RowTable(rows_SC, shard)

    def training_vectors(self, encoded_BE: Tensor) -> tuple[Tensor, Tensor]:
        """Return Φ_D of unit length [B, D] and Φ_C without normalization [B, C], for the losses."""
        return self.dual_vectors(encoded_BE), self.classifier_vectors(encoded_BE)

    def dual_vectors(self, encoded_BE: Tensor) -> Tensor:
        """Return Φ_D of unit length [B, D]."""
        return F.normalize(self.dual_head(encoded_BE), dim=-1)

    def classifier_vectors(self, encoded_BE: Tensor) -> Tensor:
        """Return Φ_C without normalization [B, C]."""
        return encoded_BE[:, :0] if self.classifier_head is None else self.classifier_head(encoded_BE)

    def query_vectors(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Return N(g1 Φ) [B, D] and N(g2 Φ) [B, C] of queries, given token ids and mask, int64 [B, T]."""
        dual_BD, classifier_BC = self.training_vectors(self.encoder(input_ids_BT, attention_mask_BT))
        return dual_BD, F.normalize(classifier_BC, dim=-1)

    def label_vectors(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        """Return N(g1 Φ(z)) [B, D] of label texts, given token ids and mask, int64 [B, T]."""
        return self.dual_vectors(self.encoder(input_ids_BT, attention_mask_BT))

    def classifier_rows(self) -> Tensor:
        """Return ψ of the shard's labels [S, C], without normalization."""
        if self.classifier is None:
            return next(self.dual_head.parameters()).new_zeros(self.shard.size(self.n_labels), 0)
        return self.classifier.weight

    @torch.inference_mode()
    def label_rows(self, label_tokens: TokenizedTexts) -> Tensor:
        """Return ψ of the shard's labels [S, C], without normalization; encodes their texts if the table has residuals.

        `label_tokens` are the texts of all labels.
        """
        if not self.adds_text:
            return self.classifier_rows()
        rows_SC, label_S = self.classifier_rows().float().clone(), self.shard.labels(self.n_labels).numpy()
        for positions, batch in label_tokens.batches_by_length(TEXTS_PER_BATCH, label_S):
            batch = batch.to(rows_SC.device)
            encoded_BE = self.encoder(batch.input_ids_BT, batch.attention_mask_BT)
            rows_SC[torch.from_numpy(positions).to(rows_SC.device)] += self.classifier_vectors(encoded_BE).float()
        return rows_SC

    def trained_labels(self, positives_L: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of the shard's labels have a training positive and a trained row ψ, bool [S].

        Some positives are never sampled. With ψ from texts, every label has a row that training determines.
        `positives_L` counts those of all labels.
        """
        positives_S = positives_L[self.shard.labels(self.n_labels).numpy()]
        if self.rows_from_text:
            return np.ones(len(positives_S), np.bool_)
        updated_S: NDArray[np.bool_] = self.classifier_rows().any(dim=1).cpu().numpy()
        trained_S: NDArray[np.bool_] = updated_S & (positives_S > 0)
        return trained_S

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the weights of g1 and g2."""
        for head in (self.dual_head, self.classifier_head):
            if head is not None:
                yield from head.parameters()

    def row_tables(self) -> dict[str, RowTable]:
        """Return the tables that the row-wise optimizer updates, by name: ψ, and the tables of a static encoder."""
        tables = {} if self.classifier is None else {"classifier": self.classifier}
        if isinstance(self.encoder, StaticEncoder):
            match self.encoder.vectors:
                case SubwordVectors() as vectors:
                    tables |= {"token": vectors.tokens, "ngram": vectors.ngrams}
                case RowTable() as vectors:
                    tables |= {"token": vectors}
            tables |= {"token_weight": self.encoder.weights, "place": self.encoder.places}
            if self.encoder.pairs is not None:
                tables |= {"pair": self.encoder.pairs}
        return tables

    def inference_state_dict(self) -> dict[str, Tensor]:
        """Return the state dict for inference: subword n-grams are added into one table of token vectors."""
        state = self.state_dict()
        if isinstance(self.encoder, StaticEncoder) and isinstance(self.encoder.vectors, SubwordVectors):
            state = {name: tensor for name, tensor in state.items() if not name.startswith("encoder.vectors.")}
            state["encoder.vectors.weight"] = self.encoder.vectors.weight
        return state


def init_model(
    recipe: Recipe, n_labels: int, rarity_V: Tensor, tokens: Sequence[str] = (), shard: LabelShard = ALL_LABELS
) -> UnifiedModel:
    """Return an untrained model: initialized from the recipe's seed, or a pretrained transformer with new heads.

    For a static encoder, `rarity_V` float [V] is the inverse document frequency per token, and `tokens` are the tokens
    as text (none: no subword n-grams). Raises RecipeError if a pretrained model cannot be loaded.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    torch.manual_seed(recipe.seed)
    encoder: StaticEncoder | TransformerEncoder
    match recipe.encoder:
        case StaticEncoderRecipe(start_from=source) as choice:
            if source is None:
                start_VE = random_vectors(len(rarity_V), choice.dim, generator)
                vectors = _vectors(choice, start_VE, tokens, generator)
                if choice.initial_vectors == "shipped" and tokens:
                    set_known_vectors(vectors, *table_vectors(shipped_table(), tokens, choice.dim))
            else:
                start_VE = pretrained_vectors(pretrained.token_vectors(source, len(rarity_V)), choice.dim)
                vectors = _vectors(choice, start_VE, tokens, None)
            encoder = StaticEncoder(vectors, rarity_weights(rarity_V), choice.pair_rows, choice.pair_dropout)
        case TransformerEncoderRecipe() as choice:
            encoder = TransformerEncoder(pretrained.transformer(choice))
    return UnifiedModel(encoder, recipe, n_labels, shard)


def model_skeleton(
    recipe: Recipe,
    n_labels: int,
    vocabulary: int,
    config_folder: Path,
    tokens: Sequence[str] = (),
    shard: LabelShard = ALL_LABELS,
) -> UnifiedModel:
    """Return a model whose weights will be loaded; a transformer's shape comes from its saved config.

    `tokens` are the tokens of a resumed run. Without them, a static encoder has one table of token vectors, as in
    `inference_state_dict`.
    """
    encoder: StaticEncoder | TransformerEncoder
    match recipe.encoder:
        case StaticEncoderRecipe() as choice:
            zeros_VE = torch.zeros(vocabulary, choice.dim)
            vectors = _vectors(choice, zeros_VE, tokens, None)
            encoder = StaticEncoder(vectors, torch.zeros(vocabulary, 1), choice.pair_rows, choice.pair_dropout)
        case TransformerEncoderRecipe():
            encoder = TransformerEncoder(pretrained.transformer_skeleton(config_folder))
    return UnifiedModel(encoder, recipe, n_labels, shard)


def _vectors(
    choice: StaticEncoderRecipe, start_VE: Tensor, tokens: Sequence[str], generator: torch.Generator | None
) -> RowTable | SubwordVectors:
    ngrams = shared_ngrams(tokens, choice.subword_rows)
    return subword_vectors(start_VE, ngrams, generator) if ngrams.n_ngrams else RowTable(start_VE)
