"""GradCache gives the gradients of direct encoding."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.training.pretrained import save_tiny_bert
from training.data.ragged import Ragged
from training.data.token_cache import TokenBatch, TokenizedTexts
from training.model.pretrained import transformer
from training.model.row_table import RowTable
from training.model.static_encoder import StaticEncoder
from training.model.transformer_encoder import TransformerEncoder
from training.optim.grad_cache import GradCacheEncoding
from training.recipe.sections import TransformerEncoderRecipe

CPU = torch.device("cpu")


@pytest.fixture
def texts() -> TokenizedTexts:
    """Thirteen texts of one to six tokens."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 7, 13)
    ids = generator.integers(5, 60, lengths.sum()).astype(np.int32)
    return TokenizedTexts(Ragged.from_lengths(ids, lengths), pad_id=0)


@pytest.fixture(params=["static", "transformer"])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """Either encoder in training mode, with dropout."""
    torch.manual_seed(0)
    if request.param == "static":
        pairs = StaticEncoder(RowTable(torch.randn(64, 8)), torch.zeros(64, 1), pairs=40, pair_dropout=0.5)
        assert pairs.pairs is not None
        pairs.pairs.weight.normal_()
        return pairs.train()
    folder = tmp_path_factory.mktemp("bert")
    save_tiny_bert(folder, map(str, range(60)))
    return TransformerEncoder(transformer(TransformerEncoderRecipe(model=str(folder)))).train()


def loss_of(vectors_BE: Tensor) -> Tensor:
    """Return a loss that depends on every pair of texts."""
    return (vectors_BE @ vectors_BE.T).logsumexp(dim=1).sum()


def gradients(encoder: nn.Module) -> dict[str, Tensor]:
    """Return gradients by parameter or table; those of a table summed per row."""
    found = {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}
    for name, table in encoder.named_modules():
        if isinstance(table, RowTable):
            found[name] = torch.zeros(table.weight.shape).index_add_(0, *table.pop_gradients())
    return found


@pytest.mark.parametrize("chunk_size", [1, 4, 13, 50])
def test_grad_cache_gives_the_gradients_of_direct_encoding(
    encoder: nn.Module, texts: TokenizedTexts, chunk_size: int
) -> None:
    """If it fails, a large batch with GradCache is trained with other gradients than without."""

    def encode(tokens: TokenBatch) -> Tensor:
        vectors_BE: Tensor = encoder(tokens.input_ids_BT, tokens.attention_mask_BT)
        return vectors_BE

    torch.manual_seed(1)
    chunks = list(texts.batches_by_length(chunk_size))
    whole_BE = torch.cat([encode(tokens) for _, tokens in chunks])
    order = np.argsort(np.concatenate([places for places, _ in chunks]))
    loss_of(whole_BE[torch.from_numpy(order)]).backward()  # type: ignore[no-untyped-call]
    expected = gradients(encoder)
    encoder.zero_grad()

    torch.manual_seed(1)
    chunked = GradCacheEncoding(encode, texts, chunk_size, CPU)
    loss_of(chunked.vectors_BE).backward()  # type: ignore[no-untyped-call]
    chunked.backward()
    found = gradients(encoder)
    assert found.keys() == expected.keys()
    assert sum(gradient.abs().sum() for gradient in found.values()) > 1
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)
