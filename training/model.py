"""The unified model: encoder Φ, heads g1 and g2, classifier rows ψ (UniDEC, section 3).

    Φ_D(x) = N(dropout(tanh(W1 Φ(x))))      the dual encoder's side, of queries and of label texts alike
    Φ_C(x) = dropout(W2 Φ(x))               the classifier's side, of queries; one row ψ_l a label

Shapes: B texts, T tokens of the longest of them, D width of the dual encoder's half, C of the classifier's, E of the
encoder, L labels, V tokens of the vocabulary.
"""

from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training import pretrained
from training.recipe import HeadRecipe, Recipe, StaticEncoderRecipe, TransformerEncoderRecipe
from training.rowwise import RowTable
from training.static_encoder import StaticEncoder, pretrained_vectors, random_vectors, rarity_weights


class Encoder(Protocol):
    """Φ: token ids and mask, both int64 [B, T] → float [B, E]."""

    width: int

    def __call__(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        """Encode a batch of texts."""
        ...


class TransformerEncoder(nn.Module):
    """A Hugging Face encoder, mean-pooled over its tokens."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer
        self.width = int(transformer.config.hidden_size)  # type: ignore[union-attr, arg-type]

    def forward(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        """Mean of the last hidden states over the tokens that are no padding."""
        hidden_BTE = self.transformer(input_ids=input_ids_BT, attention_mask=attention_mask_BT).last_hidden_state
        mask_BT1 = attention_mask_BT.unsqueeze(-1).to(hidden_BTE.dtype)
        mean_BE: Tensor = (hidden_BTE * mask_BT1).sum(dim=1) / mask_BT1.sum(dim=1)
        return mean_BE


class Head(nn.Module):
    """g1 or g2: one linear map, with tanh for the dual encoder."""

    def __init__(self, width: int, recipe: HeadRecipe, *, tanh: bool) -> None:
        super().__init__()
        self.dim = recipe.dim or width
        self.linear = nn.Linear(width, self.dim)
        nn.init.orthogonal_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.dropout = nn.Dropout(recipe.dropout)
        self.tanh = tanh

    def forward(self, encoded_BE: Tensor) -> Tensor:
        """[B, E] → [B, dim], not normalised."""
        projected_BD = self.linear(encoded_BE)
        dropped: Tensor = self.dropout(torch.tanh(projected_BD) if self.tanh else projected_BD)
        return dropped


class UnifiedModel(nn.Module):
    """Both heads over one encoder, and the classifier's rows.

    `classifier` holds ψ raw, as training leaves it; `query_vectors` and `label_vectors` give what is searched with.
    """

    def __init__(self, encoder: StaticEncoder | TransformerEncoder, recipe: Recipe, n_labels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.dual_head = Head(encoder.width, recipe.heads.dual_encoder, tanh=True)
        self.classifier_head = Head(encoder.width, recipe.heads.classifier, tanh=False)
        self.classifier = RowTable(torch.zeros(n_labels, self.classifier_head.dim))
        self.dual_dim = self.dual_head.dim
        self.classifier_dim = self.classifier_head.dim

    def training_vectors(self, encoded_BE: Tensor) -> tuple[Tensor, Tensor]:
        """Φ_D of unit length [B, D] and Φ_C not normalised [B, C], as the losses want them."""
        return F.normalize(self.dual_head(encoded_BE), dim=-1), self.classifier_head(encoded_BE)

    def dual_vectors(self, encoded_BE: Tensor) -> Tensor:
        """Φ_D of unit length [B, D]."""
        return F.normalize(self.dual_head(encoded_BE), dim=-1)

    def query_vectors(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids and mask int64 [B, T] → (N(g1 Φ) [B, D], N(g2 Φ) [B, C]), each of unit length."""
        dual_BD, classifier_BC = self.training_vectors(self.encoder(input_ids_BT, attention_mask_BT))
        return dual_BD, F.normalize(classifier_BC, dim=-1)

    def label_vectors(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        """Token ids and mask int64 [B, T] of label texts → N(g1 Φ(z)) [B, D]."""
        return self.dual_vectors(self.encoder(input_ids_BT, attention_mask_BT))

    def classifier_rows(self) -> Tensor:
        """ψ [L, C], raw."""
        return self.classifier.weight

    def row_tables(self) -> dict[str, RowTable]:
        """The tables that the row-wise optimiser moves, by name: classifier, and the tokens of a static encoder."""
        tables = {"classifier": self.classifier}
        if isinstance(self.encoder, StaticEncoder):
            tables |= {"token": self.encoder.vectors, "token_weight": self.encoder.weights}
            tables |= {"place": self.encoder.places}
            if self.encoder.pairs is not None:
                tables |= {"pair": self.encoder.pairs}
        return tables


def fresh_model(recipe: Recipe, n_labels: int, rarity_V: Tensor) -> UnifiedModel:
    """A model to train: weights from the recipe's seed, or a pretrained transformer with fresh heads.

    `rarity_V` float [V]: inverse document frequency of each token, for a static encoder.
    Raises RecipeError when what a recipe starts from cannot be loaded.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    torch.manual_seed(recipe.seed)
    encoder: StaticEncoder | TransformerEncoder
    match recipe.encoder:
        case StaticEncoderRecipe(start_from=source) as choice:
            vectors_VE = (
                random_vectors(len(rarity_V), choice.dim, generator)
                if source is None
                else pretrained_vectors(pretrained.token_vectors(source, len(rarity_V)), choice.dim)
            )
            encoder = StaticEncoder(vectors_VE, rarity_weights(rarity_V), choice.pair_rows, choice.pair_dropout)
        case TransformerEncoderRecipe() as choice:
            encoder = TransformerEncoder(pretrained.transformer(choice))
    return UnifiedModel(encoder, recipe, n_labels)


def empty_model(recipe: Recipe, n_labels: int, vocabulary: int, config_folder: Path) -> UnifiedModel:
    """A model whose weights a checkpoint is about to fill; a transformer's shape comes from its saved config."""
    encoder: StaticEncoder | TransformerEncoder
    match recipe.encoder:
        case StaticEncoderRecipe(dim=dim, pair_rows=pairs, pair_dropout=dropout):
            encoder = StaticEncoder(torch.zeros(vocabulary, dim), torch.zeros(vocabulary, 1), pairs, dropout)
        case TransformerEncoderRecipe():
            encoder = TransformerEncoder(pretrained.empty_transformer(config_folder))
    return UnifiedModel(encoder, recipe, n_labels)
