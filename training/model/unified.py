"""The unified model: encoder Φ, heads g1 and g2, classifier rows ψ (UniDEC, section 3).

    Φ_D(x) = N(dropout(tanh(W1 Φ(x))))      the dual encoder's side, of queries and of label texts alike
    Φ_C(x) = dropout(W2 Φ(x))               the classifier's side, of queries; one row ψ_l a label

Shapes: B texts, G of like length, T tokens of the longest of them, D width of the dual encoder's half, C of the
classifier's, E of the encoder, L labels, V tokens of the vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.model import pretrained
from training.model.row_tables import RowTable
from training.model.static_encoder import StaticEncoder, pretrained_vectors, random_vectors, rarity_weights
from training.model.subword_ngrams import SpelledVectors, shared_pieces, spelled
from training.recipe.schema import HeadRecipe, Recipe, StaticEncoderRecipe, TransformerEncoderRecipe

# Texts of one length are encoded together, with the next length's as well where these are fewer tokens in all: a call
# costs as much as so many tokens. Measured on a CPU, calculated for a GPU.
LEAST_TOKENS = {"cpu": 256, "cuda": 4096}


class TransformerEncoder(nn.Module):
    """A Hugging Face encoder, mean-pooled over its tokens."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer
        self.width = int(transformer.config.hidden_size)  # type: ignore[union-attr, arg-type]

    def forward(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        """Token ids and mask, int64 [B, T] → float [B, E]: the mean of the last hidden states, padding left out."""
        if self.training:
            return self._by_length(input_ids_BT, attention_mask_BT)
        return self._mean(attention_mask_BT, input_ids=input_ids_BT)

    def _by_length(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        """The same, texts of like length together: of a batch of short texts more than half is padding."""
        lengths_B = attention_mask_BT.sum(dim=1)
        order_B = lengths_B.argsort(stable=True)
        sorted_B = lengths_B[order_B].tolist()
        groups = groups_of_like_length(sorted_B, LEAST_TOKENS[input_ids_BT.device.type])
        cuts = [(order_B[start:stop], sorted_B[stop - 1]) for start, stop in groups]
        # Looked up once for all groups: each look-up's gradient is as large as the whole table.
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


def groups_of_like_length(sorted_B: Sequence[int], least_tokens: int) -> list[tuple[int, int]]:
    """Where to cut texts of rising length: (start, stop) of each group, which holds whole lengths.

    A group but the last has `least_tokens` or more.
    """
    groups, start = [], 0
    for at in range(1, len(sorted_B)):
        if sorted_B[at] > sorted_B[at - 1] and (at - start) * sorted_B[at - 1] >= least_tokens:
            groups.append((start, at))
            start = at
    return [*groups, (start, len(sorted_B))]


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
        dtype = getattr(torch, recipe.optimizer.classifier_rows)
        self.classifier = RowTable(torch.zeros(n_labels, self.classifier_head.dim, dtype=dtype))
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
            match self.encoder.vectors:
                case SpelledVectors() as spelt:
                    tables |= {"token": spelt.own, "piece": spelt.pieces}
                case RowTable() as vectors:
                    tables |= {"token": vectors}
            tables |= {"token_weight": self.encoder.weights, "place": self.encoder.places}
            if self.encoder.pairs is not None:
                tables |= {"pair": self.encoder.pairs}
        return tables

    def answering_state(self) -> dict[str, Tensor]:
        """Every tensor by name, with spelled tokens added up to the plain table that answering needs."""
        state = self.state_dict()
        if isinstance(self.encoder, StaticEncoder) and isinstance(self.encoder.vectors, SpelledVectors):
            state = {name: tensor for name, tensor in state.items() if not name.startswith("encoder.vectors.")}
            state["encoder.vectors.weight"] = self.encoder.vectors.weight
        return state


def fresh_model(recipe: Recipe, n_labels: int, rarity_V: Tensor, tokens: Sequence[str] = ()) -> UnifiedModel:
    """A model to train: weights from the recipe's seed, or a pretrained transformer with fresh heads.

    For a static encoder, `rarity_V` float [V] is each token's inverse document frequency, `tokens` are how they are
    spelt (without them none shares anything).
    Raises RecipeError when what a recipe starts from cannot be loaded.
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


def empty_model(
    recipe: Recipe, n_labels: int, vocabulary: int, config_folder: Path, tokens: Sequence[str] = ()
) -> UnifiedModel:
    """A model whose weights a checkpoint is about to fill; a transformer's shape comes from its saved config.

    `tokens` are those that a run which goes on began with; to answer, a static encoder's vectors are one plain table.
    """
    encoder: StaticEncoder | TransformerEncoder
    match recipe.encoder:
        case StaticEncoderRecipe() as choice:
            empty_VE = torch.zeros(vocabulary, choice.dim)
            vectors = _vectors(choice, empty_VE, tokens, None)
            encoder = StaticEncoder(vectors, torch.zeros(vocabulary, 1), choice.pair_rows, choice.pair_dropout)
        case TransformerEncoderRecipe():
            encoder = TransformerEncoder(pretrained.empty_transformer(config_folder))
    return UnifiedModel(encoder, recipe, n_labels)


def _vectors(
    choice: StaticEncoderRecipe, start_VE: Tensor, tokens: Sequence[str], generator: torch.Generator | None
) -> RowTable | SpelledVectors:
    spelling = shared_pieces(tokens, choice.subword_rows)
    return spelled(start_VE, spelling, generator) if spelling.pieces else RowTable(start_VE)
