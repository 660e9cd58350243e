"""The unified model: encoder Φ, heads g1 and g2, classifier rows ψ (UniDEC, section 3).

    Φ_D(x) = N(dropout(tanh(W1 Φ(x))))      the dual encoder's side, of queries and of label texts alike
    Φ_C(x) = dropout(W2 Φ(x))               the classifier's side, of queries; one row ψ_l a label

Shapes: B texts, T tokens of the longest of them, D width of the dual encoder's half, C of the classifier's, E of the
encoder, L labels, V tokens of the vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retrieval.errors import CheckpointError, RecipeError
from training.recipe import HeadRecipe, Recipe, StaticEncoderRecipe, TransformerEncoderRecipe
from training.rowwise import RowTable


class Encoder(Protocol):
    """Φ: token ids and mask, both int64 [B, T] → float [B, E]."""

    width: int

    def __call__(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        """Encode a batch of texts."""
        ...


class StaticEncoder(nn.Module):
    """Weighted mean of one learned vector a token; the weight is learned too. Milliseconds for thousands of texts."""

    def __init__(self, vectors_VE: Tensor, weights_V1: Tensor) -> None:
        super().__init__()
        self.vectors = RowTable(vectors_VE)
        self.weights = RowTable(weights_V1)
        self.width = self.vectors.width

    @classmethod
    def fresh(cls, vocabulary: int, width: int, generator: torch.Generator) -> "StaticEncoder":
        """Random vectors of length about 1 and equal weights."""
        vectors_VE = torch.randn(vocabulary, width, generator=generator) * width**-0.5
        return cls(vectors_VE, torch.zeros(vocabulary, 1))

    def forward(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        """Σ_t w_t·v_t / Σ_t w_t over the tokens of each text, w = softplus of the learned weight."""
        if self.training and torch.is_grad_enabled():
            return self._learn(input_ids_BT, attention_mask_BT)
        weights_BT = F.softplus(self.weights.weight[input_ids_BT].squeeze(-1)) * attention_mask_BT
        share_BT1 = (weights_BT / weights_BT.sum(dim=1, keepdim=True)).unsqueeze(-1)
        return (self.vectors.weight[input_ids_BT] * share_BT1).sum(dim=1)

    def _learn(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        """The same mean, over rows taken once for the batch and without the padding."""
        lengths_B = attention_mask_BT.sum(dim=1)
        tokens_U, place_S = torch.unique(input_ids_BT[attention_mask_BT.bool()], return_inverse=True)
        weights_S = F.softplus(self.weights.take(tokens_U).squeeze(-1)).index_select(0, place_S)
        text_S = torch.repeat_interleave(torch.arange(len(lengths_B), device=lengths_B.device), lengths_B)
        total_B = weights_S.new_zeros(len(lengths_B)).index_add(0, text_S, weights_S)
        share_S = weights_S / total_B.index_select(0, text_S)
        starts_B = lengths_B.cumsum(0) - lengths_B
        return F.embedding_bag(place_S, self.vectors.take(tokens_U), starts_B, mode="sum", per_sample_weights=share_S)


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
        return tables


def fresh_model(recipe: Recipe, n_labels: int, vocabulary: int) -> UnifiedModel:
    """A model to train: weights from the recipe's seed, or a pretrained transformer with fresh heads.

    Raises RecipeError when the transformer cannot be loaded.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    torch.manual_seed(recipe.seed)
    encoder: StaticEncoder | TransformerEncoder
    match recipe.encoder:
        case StaticEncoderRecipe(dim=dim):
            encoder = StaticEncoder.fresh(vocabulary, dim, generator)
        case TransformerEncoderRecipe() as choice:
            encoder = TransformerEncoder(_pretrained(choice))
    return UnifiedModel(encoder, recipe, n_labels)


def empty_model(recipe: Recipe, n_labels: int, vocabulary: int, config_folder: Path) -> UnifiedModel:
    """A model whose weights a checkpoint is about to fill; a transformer's shape comes from its saved config."""
    encoder: StaticEncoder | TransformerEncoder
    match recipe.encoder:
        case StaticEncoderRecipe(dim=dim):
            encoder = StaticEncoder(torch.zeros(vocabulary, dim), torch.zeros(vocabulary, 1))
        case TransformerEncoderRecipe():
            from transformers import AutoConfig, AutoModel

            try:
                config = AutoConfig.from_pretrained(config_folder, local_files_only=True)
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{config_folder}: the encoder's config cannot be read: {error}") from error
            encoder = TransformerEncoder(_encoder_half(AutoModel.from_config(config, **_no_pooler(config))))  # type: ignore[no-untyped-call]
    return UnifiedModel(encoder, recipe, n_labels)


def _pretrained(choice: TransformerEncoderRecipe) -> nn.Module:
    """The transformer with its first `layers` layers, in float32, without its unused pooler."""
    from transformers import AutoConfig, AutoModel, logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # it would list the layers left out on purpose
    with loading(choice.model):
        config = AutoConfig.from_pretrained(choice.model)
        _keep_layers(config, choice)
        _check_length(config, choice)
        model = AutoModel.from_pretrained(choice.model, config=config, dtype=torch.float32, **_no_pooler(config))
        encoder: nn.Module = _encoder_half(model)
        return encoder


@contextmanager
def loading(model: str) -> Iterator[None]:
    """Whatever a third party's loading code raises becomes one sentence that names the model."""
    looks_local = model.startswith((".", "/", "~")) or model.count("/") > 1
    if looks_local and not Path(model).is_dir():
        raise RecipeError(f"encoder.model '{model}': there is no such folder. Give a folder that holds a model.")
    try:
        yield
    except RecipeError:
        raise
    except Exception as error:  # transformers and what it calls raise anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RecipeError(
            f"encoder.model '{model}' cannot be loaded: {reason} Give a folder that holds the model, "
            "or a name that the Hugging Face hub knows and this machine can reach."
        ) from error


def _keep_layers(config: Any, choice: TransformerEncoderRecipe) -> None:
    depth = config.num_hidden_layers
    kept = choice.layers or depth
    if kept > depth:
        raise RecipeError(f"encoder.layers is {kept}, but '{choice.model}' has {depth}: give at most that")
    config.num_hidden_layers = kept
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:kept]


def _check_length(config: Any, choice: TransformerEncoderRecipe) -> None:
    """RoBERTa's kind counts positions from behind the padding id, so it has that many fewer."""
    reserved = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet") else 0
    most = getattr(config, "max_position_embeddings", None)
    if isinstance(most, int) and choice.max_tokens > most - reserved > 0:
        raise RecipeError(
            f"encoder.max_tokens is {choice.max_tokens}, but '{choice.model}' reads {most - reserved} tokens: "
            "give at most that"
        )


def _encoder_half(model: Any) -> Any:
    """Of an encoder-decoder (T5, BART) only the encoder: mean pooling has no use for a decoder."""
    return model.get_encoder() if model.config.is_encoder_decoder else model


def _no_pooler(config: Any) -> dict[str, bool]:
    """Mean pooling has no use for the pooler that some architectures add; unused weights would never learn."""
    return {"add_pooling_layer": False} if config.model_type in ("bert", "roberta", "xlm-roberta", "camembert") else {}
