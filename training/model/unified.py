"""The unified model: encoder Φ, heads g1 and g2, classifier rows ψ (UniDEC, section 3).

    Φ_D(x) = N(dropout(tanh(W1 Φ(x))))      dual encoder: vectors of queries and label texts
    Φ_C(x) = dropout(W2 Φ(x))               classifier: vectors of queries; one row ψ_l per label

Shapes: B texts, G texts of a group of similar length, T tokens of the longest text, S tokens of all groups, D width of
the dual encoder's vectors, C of the classifier's, E of the encoder, L labels, V tokens of the vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from training.model import pretrained
from training.model.row_table import RowTable
from training.model.static_encoder import StaticEncoder, pretrained_vectors, random_vectors, rarity_weights
from training.model.subword_ngrams import SubwordVectors, shared_ngrams, subword_vectors
from training.recipe.schema import HeadRecipe, Recipe, StaticEncoderRecipe, TransformerEncoderRecipe

# Minimum number of tokens per call of the transformer. Texts of the next length join a smaller group, because the fixed
# cost of a call is about that of so many tokens. Measured on a CPU, estimated for a GPU.
MIN_TOKENS = {"cpu": 256, "cuda": 4096}


class TransformerEncoder(nn.Module):
    """A Hugging Face encoder with mean pooling."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer
        self.width = int(transformer.config.hidden_size)  # type: ignore[union-attr, arg-type]

    def forward(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        """Encode token ids and mask, int64 [B, T], as the mean of the last hidden states, float [B, E]."""
        if self.training:
            return self._by_length(input_ids_BT, attention_mask_BT)
        return self._mean(attention_mask_BT, input_ids=input_ids_BT)

    def _by_length(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        """Encode groups of similar length separately: more than half of a batch of short texts is padding."""
        lengths_B = attention_mask_BT.sum(dim=1)
        order_B = lengths_B.argsort(stable=True)
        sorted_B = lengths_B[order_B].tolist()
        groups = groups_by_length(sorted_B, MIN_TOKENS[input_ids_BT.device.type])
        cuts = [(order_B[start:stop], sorted_B[stop - 1]) for start, stop in groups]
        # One look-up for all groups, because the gradient of each look-up is as large as the whole table.
        embedded_SE = self.transformer.get_input_embeddings()(  # type: ignore[operator]
            torch.cat([input_ids_BT[rows_G, :longest].flatten() for rows_G, longest in cuts])
        )
        means = []
        for (rows_G, longest), group_SE in zip(
            cuts, embedded_SE.split([len(rows_G) * longest for rows_G, longest in cuts]), strict=True
        ):
            group_GTE = group_SE.view(len(rows_G), longest, -1)
            means.append(self._mean(attention_mask_BT[rows_G, :longest], inputs_embeds=group_GTE))
        return torch.cat(means)[order_B.argsort()]

    def _mean(self, attention_mask_BT: Tensor, **inputs: Tensor) -> Tensor:
        hidden_BTE = self.transformer(attention_mask=attention_mask_BT, **inputs).last_hidden_state
        mask_BT1 = attention_mask_BT.unsqueeze(-1).to(hidden_BTE.dtype)
        mean_BE: Tensor = (hidden_BTE * mask_BT1).sum(dim=1) / mask_BT1.sum(dim=1)
        return mean_BE


def groups_by_length(sorted_B: Sequence[int], min_tokens: int) -> list[tuple[int, int]]:
    """Group texts of ascending length: return (start, stop) of each group. Texts of equal length are in one group.

    Every group except the last has at least `min_tokens` tokens, including padding.
    """
    groups, start = [], 0
    for at in range(1, len(sorted_B)):
        if sorted_B[at] > sorted_B[at - 1] and (at - start) * sorted_B[at - 1] >= min_tokens:
            groups.append((start, at))
            start = at
    return [*groups, (start, len(sorted_B))]


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
    """

    def __init__(self, encoder: StaticEncoder | TransformerEncoder, recipe: Recipe, n_labels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.dual_head = Head(encoder.width, recipe.heads.dual_encoder, tanh=True)
        self.classifier_head = Head(encoder.width, recipe.heads.classifier, tanh=False)
        dtype = getattr(torch, recipe.optimizer.classifier_rows)
        self.classifier = RowTable(torch.zeros(n_labels, self.classifier_head.dim, dtype=dtype))
        self.dual_dim = self.dual_head.dim
        self.classifier_dim = self.classifier_head.dim

    def training_vectors(self, encoded_BE: Tensor) -> tuple[Tensor, Tensor]:
        """Return Φ_D of unit length [B, D] and Φ_C without normalization [B, C], for the losses."""
        return F.normalize(self.dual_head(encoded_BE), dim=-1), self.classifier_head(encoded_BE)

    def dual_vectors(self, encoded_BE: Tensor) -> Tensor:
        """Return Φ_D of unit length [B, D]."""
        return F.normalize(self.dual_head(encoded_BE), dim=-1)

    def query_vectors(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Return N(g1 Φ) [B, D] and N(g2 Φ) [B, C] of queries, given token ids and mask, int64 [B, T]."""
        dual_BD, classifier_BC = self.training_vectors(self.encoder(input_ids_BT, attention_mask_BT))
        return dual_BD, F.normalize(classifier_BC, dim=-1)

    def label_vectors(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        """Return N(g1 Φ(z)) [B, D] of label texts, given token ids and mask, int64 [B, T]."""
        return self.dual_vectors(self.encoder(input_ids_BT, attention_mask_BT))

    def classifier_rows(self) -> Tensor:
        """Return ψ [L, C], without normalization."""
        return self.classifier.weight

    def trained_labels(self, positives_L: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of L labels have a training positive and a trained row ψ: some positives are never sampled."""
        updated_L: NDArray[np.bool_] = self.classifier.weight.any(dim=1).cpu().numpy()
        return updated_L & (positives_L > 0)

    def row_tables(self) -> dict[str, RowTable]:
        """Return the tables that the row-wise optimizer updates, by name: ψ, and the tables of a static encoder."""
        tables = {"classifier": self.classifier}
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


def init_model(recipe: Recipe, n_labels: int, rarity_V: Tensor, tokens: Sequence[str] = ()) -> UnifiedModel:
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
            else:
                start_VE = pretrained_vectors(pretrained.token_vectors(source, len(rarity_V)), choice.dim)
                vectors = _vectors(choice, start_VE, tokens, None)
            encoder = StaticEncoder(vectors, rarity_weights(rarity_V), choice.pair_rows, choice.pair_dropout)
        case TransformerEncoderRecipe() as choice:
            encoder = TransformerEncoder(pretrained.transformer(choice))
    return UnifiedModel(encoder, recipe, n_labels)


def model_skeleton(
    recipe: Recipe, n_labels: int, vocabulary: int, config_folder: Path, tokens: Sequence[str] = ()
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
    return UnifiedModel(encoder, recipe, n_labels)


def _vectors(
    choice: StaticEncoderRecipe, start_VE: Tensor, tokens: Sequence[str], generator: torch.Generator | None
) -> RowTable | SubwordVectors:
    ngrams = shared_ngrams(tokens, choice.subword_rows)
    return subword_vectors(start_VE, ngrams, generator) if ngrams.n_ngrams else RowTable(start_VE)
