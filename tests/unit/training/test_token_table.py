"""The token table: its file, the vectors that a new model starts with, and the meaning of the shipped ones."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.support.training.pretrained import save_tiny_bert
from training.model.build_token_table import build_table, flatten_axes
from training.model.subword_ngrams import SubwordVectors
from training.model.token_table import TokenTable, load_table, save_table, shipped_table, table_vectors
from training.model.unified import init_model
from training.recipe.schema import Recipe

TOKENS = ["[PAD]", "[UNK]", "car", "truck", "banana", "ᚠᚢᚦᚨᚱ", "ᚠᚢᚦᚨᚱᚲ"]


def table() -> TokenTable:
    return TokenTable(("car", "##s", "é"), torch.tensor([[1.0, 0.5], [0.25, -1.0], [0.0, 0.0]]))


def encoder_vectors(**encoder: object) -> torch.Tensor:
    """Return the token vectors of a new model."""
    recipe = Recipe.model_validate({"name": "t", "encoder": {"kind": "static", "pair_rows": 0, **encoder}})
    model = init_model(recipe, 3, torch.ones(len(TOKENS)), TOKENS)
    vectors = model.encoder.vectors
    assert isinstance(vectors, SubwordVectors)
    return vectors.weight


def test_a_written_table_is_read_back(tmp_path: Path) -> None:
    """Tokens or vectors would differ between the writer and the reader: every run would start wrong."""
    save_table(tmp_path / "table.safetensors", table())
    read = load_table(tmp_path / "table.safetensors")
    assert read.tokens == table().tokens
    torch.testing.assert_close(read.vectors_NW, table().vectors_NW, atol=1 / 127, rtol=0)


@pytest.mark.parametrize("width", [1, 2, 4])
def test_vectors_of_tokens_at_any_width(width: int) -> None:
    """A token would get the vector of another one, or a narrower or wider encoder could not start from the table."""
    vectors_VE, known_V = table_vectors(table(), ["##s", "tree", "car", "cars", "carts", "##ss"], width)
    assert known_V.tolist() == [True, False, True, True, False, True]
    mean_of_pieces = [0.625, -0.25]
    expected_VE = torch.tensor([[0.25, -1.0], [0.0, 0.0], [1.0, 0.5], mean_of_pieces, [0.0, 0.0], [0.25, -1.0]])
    expected_VE = F.pad(expected_VE, (0, max(0, width - 2)))[:, :width]
    torch.testing.assert_close(vectors_VE, expected_VE)


def test_known_tokens_start_with_the_table_and_others_as_without_it() -> None:
    """N-grams would be added to the table's vectors, or unknown tokens would lose their random start."""
    vectors_VE = encoder_vectors()
    expected_VE, known_V = table_vectors(shipped_table(), TOKENS, 256)
    assert known_V.tolist() == [False, False, True, True, True, False, False]
    torch.testing.assert_close(vectors_VE[known_V], expected_VE[known_V])
    torch.testing.assert_close(vectors_VE[~known_V], encoder_vectors(initial_vectors="random")[~known_V])


def test_shipped_vectors_have_meaning() -> None:
    """The shipped file would belong to another order of tokens, and training would start from nonsense."""
    vectors_NW = F.normalize(shipped_table().vectors_NW, dim=1)
    row = {token: place for place, token in enumerate(shipped_table().tokens)}
    for word, near, far in (("car", "vehicle", "banana"), ("doctor", "physician", "bridge"), ("rain", "storm", "tax")):
        near_cosine, far_cosine = (float(vectors_NW[row[word]] @ vectors_NW[row[other]]) for other in (near, far))
        assert near_cosine > far_cosine + 0.2, word


def test_a_table_is_built_from_a_pretrained_encoder(tmp_path: Path) -> None:
    """The shipped file could not be built again, or special tokens would be part of it."""
    built = build_table(save_tiny_bert(tmp_path / "bert", ["red", "shoes", "##s"]), 8)
    assert built.tokens == ("red", "shoes", "##s")
    assert built.vectors_NW.shape == (3, 8)
    torch.testing.assert_close(torch.linalg.vector_norm(built.vectors_NW, dim=1).mean(), torch.tensor(1.0))


def test_axes_are_scaled_by_the_square_root_of_their_deviation() -> None:
    """The first few axes would dominate every vector."""
    vectors_NW = torch.randn(2_000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([16.0, 1.0, 0.25])
    deviation_W = flatten_axes(vectors_NW).std(dim=0)
    torch.testing.assert_close(deviation_W / deviation_W[1], torch.tensor([4.0, 1.0, 0.5]), rtol=0.1, atol=0)


def test_random_vectors_do_not_read_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """`initial_vectors: random` would still start from the table."""
    monkeypatch.setattr("training.model.unified.shipped_table", lambda: pytest.fail("the table was read"))
    assert encoder_vectors(initial_vectors="random").shape == (len(TOKENS), 256)
