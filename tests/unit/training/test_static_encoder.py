"""The static encoder against its definition, token by token, and the true gradient of every table."""

import itertools
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertConfig, BertModel

from retrieval.errors import RecipeError
from tests.support.training.pretrained import HIDDEN, SPECIAL, save_tiny_bert
from training.model.row_table import RowTable
from training.model.static_encoder import MULTIPLIERS, PLACES, StaticEncoder, pretrained_vectors, rarity_weights
from training.model.tokenizer import make_tokenizer
from training.model.unified import init_model
from training.recipe.schema import Recipe

TEXTS = [[5, 6, 7], [8], [5, 5], list(range(1, 21))]
PAIRS = 13


def batch() -> tuple[Tensor, Tensor]:
    """Return ids and mask of TEXTS; the padding id also occurs in a text, so only the mask marks padding."""
    longest = max(map(len, TEXTS))
    ids_BT = torch.full((len(TEXTS), longest), 5)
    mask_BT = torch.zeros_like(ids_BT)
    for row, text in enumerate(TEXTS):
        ids_BT[row, : len(text)] = torch.tensor(text)
        mask_BT[row, : len(text)] = 1
    return ids_BT, mask_BT


def encoder(pairs: int = PAIRS) -> StaticEncoder:
    made = StaticEncoder(RowTable(torch.randn(21, 8)), torch.randn(21, 1), pairs)
    made.places.weight.normal_()
    if made.pairs is not None:
        made.pairs.weight.normal_()
    return made


def by_definition(made: StaticEncoder, text: list[int], tables: dict[str, Tensor]) -> Tensor:
    """Return Φ of one text by the equation in the module's docstring."""
    weights = [
        F.softplus(tables["weights"][token, 0])
        * torch.exp(
            tables["places"][min(place, PLACES - 1), 0]
            + tables["places"][PLACES + min(len(text) - 1 - place, PLACES - 1), 0]
        )
        for place, token in enumerate(text)
    ]
    mean = sum(w * tables["vectors"][t] for w, t in zip(weights, text, strict=True)) / sum(weights)
    first, second = MULTIPLIERS
    pairs = [tables["pairs"][(a * first + b * second) % PAIRS] for a, b in itertools.pairwise(text)]
    return mean + sum(pairs) / len(pairs) if pairs else mean


def tables_of(made: StaticEncoder) -> dict[str, Tensor]:
    assert made.pairs is not None
    tables = {"vectors": made.vectors, "weights": made.weights, "places": made.places, "pairs": made.pairs}
    return {name: table.weight.clone().requires_grad_() for name, table in tables.items()}


def test_a_text_is_encoded_by_the_definition_in_any_batch() -> None:
    """If it fails, padding or a longer text in the batch changes a vector, or a term is missing."""
    made = encoder()
    expected = torch.stack([by_definition(made, text, tables_of(made)) for text in TEXTS])
    with torch.no_grad():
        assert torch.allclose(made.eval()(*batch()), expected, atol=1e-5)


def test_training_and_evaluation_mode_encode_alike() -> None:
    """If it fails, other vectors are exported and served than were trained."""
    for pairs in (0, PAIRS):
        made = encoder(pairs)
        learned = made.train()(*batch())
        with torch.no_grad():
            assert torch.allclose(learned, made.eval()(*batch()), atol=1e-5)


def test_every_table_gets_the_true_gradient() -> None:
    """If it fails, vectors, weights, positions or pairs are trained with wrong gradients."""
    made = encoder().train()
    direction = torch.randn(len(TEXTS), 8)
    (made(*batch()) * direction).sum().backward()
    tables = tables_of(made)
    expected = torch.stack([by_definition(made, text, tables) for text in TEXTS])
    (expected * direction).sum().backward()
    assert made.pairs is not None
    for name, table in (
        ("vectors", made.vectors), ("weights", made.weights), ("places", made.places), ("pairs", made.pairs),
    ):  # fmt: skip
        rows, gradient = table.pop_gradients()
        whole = torch.zeros_like(table.weight).index_copy(0, rows, gradient)
        assert tables[name].grad is not None
        assert torch.allclose(whole, tables[name].grad, atol=1e-4), name


def test_word_order_counts_only_through_positions_and_pairs() -> None:
    """If it fails, "dog bites man" equals "man bites dog", or an encoder without pairs depends on order."""
    ids, mask = torch.tensor([[5, 6, 7], [7, 6, 5]]), torch.ones(2, 3, dtype=torch.int64)
    ordered, plain = encoder().eval(), StaticEncoder(RowTable(torch.randn(21, 8)), torch.randn(21, 1)).eval()
    assert not torch.allclose(*ordered(ids, mask))
    assert torch.allclose(*plain(ids, mask), atol=1e-6)


def test_rare_tokens_start_with_more_weight() -> None:
    """If it fails, "the" has the same initial weight as a name."""
    weights = F.softplus(rarity_weights(torch.tensor([0.0, 2.0, 8.0, 8.0, 9.0])))
    assert weights.squeeze(1).tolist() == sorted(weights.squeeze(1).tolist())
    assert math.isclose(float(weights[2]), 0.7, rel_tol=1e-4)
    assert torch.isfinite(rarity_weights(torch.zeros(3))).all()


def test_pretrained_vectors_keep_their_neighbourhoods() -> None:
    """If it fails, a transformer's token vectors are no better than random ones."""
    table = torch.randn(50, 12) @ torch.diag(torch.linspace(2, 0.01, 12)) + 3.0
    for width in (6, 12, 20):
        turned = pretrained_vectors(table, width)
        assert turned.shape == (50, width)
        assert math.isclose(float(turned.norm(dim=1).mean()), 1.0, rel_tol=1e-4)
    centred = table - table.mean(dim=0)
    scale = centred.norm(dim=1).mean()
    assert torch.allclose(pretrained_vectors(table, 12) @ pretrained_vectors(table, 12).T * scale**2,
                          centred @ centred.T, atol=1e-3)  # fmt: skip


WORDS = ["red", "running", "shoes", "trail"]


def starting_from(source: Path | str, **encoder: object) -> Recipe:
    static = {"kind": "static", "start_from": str(source), "dim": HIDDEN, **encoder}
    return Recipe.model_validate({"name": "started", "encoder": static})


@pytest.fixture
def tiny_bert(tmp_path: Path) -> Path:
    return save_tiny_bert(tmp_path / "bert", WORDS)


def test_the_pretrained_tokenizer_comes_without_its_special_tokens(tiny_bert: Path) -> None:
    """If it fails, every text includes the same start and end vectors, or is truncated two tokens early."""
    tokenizer = make_tokenizer(starting_from(tiny_bert, max_tokens=3), ["never read: the vocabulary is there"])
    assert tokenizer.encode("red running shoes").tokens == ["red", "running", "shoes"]
    assert tokenizer.encode("red running shoes trail").tokens == ["red", "running", "shoes"]
    assert tokenizer.encode("red sandals").tokens == ["red", "[UNK]"]


def test_the_encoder_starts_with_the_pretrained_vectors(tiny_bert: Path) -> None:
    """If it fails, tokens start with random vectors or with those of other tokens."""
    table = BertModel.from_pretrained(tiny_bert).get_input_embeddings().weight.detach()
    rarity_V = torch.ones(len(SPECIAL) + len(WORDS))
    recipe = starting_from(tiny_bert)
    encoder = init_model(recipe, 3, rarity_V).encoder
    assert isinstance(encoder, StaticEncoder)
    vectors = encoder.vectors.weight
    assert torch.equal(vectors, pretrained_vectors(table, HIDDEN))
    cosines = F.cosine_similarity(vectors[:, None], vectors[None], dim=-1)
    centred = table - table.mean(dim=0)
    assert torch.allclose(cosines, F.cosine_similarity(centred[:, None], centred[None], dim=-1), atol=1e-4)


def test_a_model_with_fewer_vectors_than_tokens_is_refused(tiny_bert: Path) -> None:
    """If it fails, some tokens are looked up beyond the end of the table."""
    config = BertConfig(vocab_size=6, hidden_size=HIDDEN, num_attention_heads=2, num_hidden_layers=1)
    BertModel(config).save_pretrained(tiny_bert)
    with pytest.raises(RecipeError, match=r"encoder.start_from '.*bert' has vectors for 6 tokens, but its .* has 9"):
        init_model(starting_from(tiny_bert), 3, torch.ones(len(SPECIAL) + len(WORDS)))


def test_an_invalid_start_from_is_one_sentence_with_the_key(tiny_bert: Path) -> None:
    """If it fails, a wrong path ends in another library's traceback, or the error names `encoder.model`."""
    nowhere = starting_from(tiny_bert.parent / "nowhere")
    with pytest.raises(RecipeError, match=r"^encoder\.start_from '.*nowhere': there is no such folder"):
        make_tokenizer(nowhere, [])
    with pytest.raises(RecipeError, match=r"^encoder\.start_from '.*nowhere': there is no such folder"):
        init_model(nowhere, 3, torch.ones(9))
    weights = tiny_bert / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(RecipeError, match=r"^encoder\.start_from '.*bert' cannot be loaded"):
        init_model(starting_from(tiny_bert), 3, torch.ones(9))


def test_gradients_of_a_large_batch_are_reproducible() -> None:
    """If it fails, a resumed run ends with other weights, because gradients are summed in varying order."""
    torch.manual_seed(0)
    encoder = StaticEncoder(RowTable(torch.randn(50, 8)), torch.randn(50, 1)).train()
    token_BT, mask_BT = torch.randint(0, 50, (8192, 16)), torch.ones(8192, 16, dtype=torch.int64)
    gradients = []
    for _ in range(8):
        encoder(token_BT, mask_BT).square().sum().backward()
        gradients.append(encoder.places.pop_gradients()[1])
        encoder.vectors.pop_gradients(), encoder.weights.pop_gradients()  # discard them
    assert all(gradient.equal(gradients[0]) for gradient in gradients)
