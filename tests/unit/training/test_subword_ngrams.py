"""Token vectors as the sum of a token's vector and its n-grams' vectors, against their definition."""

import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training.checkpoint.weights import load_weights
from training.model.static_encoder import StaticEncoder
from training.model.subword_ngrams import SubwordNgrams, SubwordVectors, shared_ngrams, subword_vectors
from training.model.unified import init_model, model_skeleton
from training.optim.row_optimizer import update_rows_
from training.recipe.schema import Recipe

TOKENS = ["[PAD]", "runner", "runners", "run", "##runs", "##nning", "a", "winning", "[CLS]", "#"]


def by_name(ngrams: SubwordNgrams) -> list[list[int]]:
    pairs = itertools.pairwise(ngrams.offset_V1.tolist())
    return [ngrams.ngram_S[begin:end].tolist() for begin, end in pairs]


def test_ngrams_are_those_that_two_tokens_share() -> None:
    """If it fails, tokens share n-grams that they do not have, or word boundaries are lost."""
    tokens = ["[PAD]", "cat", "cats", "##ats", "dog", "[CAT]", "a", ""]
    ngrams = shared_ngrams(tokens, 100)
    rows = dict(zip(tokens, by_name(ngrams), strict=True))
    # Ties are broken alphabetically. "ats>" is an n-gram of "cats" only: it is the whole token "##ats".
    names = ["<ca", "<cat", "ats", "cat", "ts>"]
    assert ngrams.n_ngrams == len(names)
    assert {token: [names[row] for row in of_token] for token, of_token in rows.items() if of_token} == {
        "cat": ["<ca", "<cat", "cat"],
        "cats": ["<ca", "<cat", "ats", "cat", "ts>"],
        "##ats": ["ats", "ts>"],
    }


@pytest.mark.parametrize("begun", ["▁", "Ġ"])
def test_markers_of_word_starts_and_of_continuations_give_the_same_ngrams(begun: str) -> None:
    """If it fails, tokens of SentencePiece or byte-level tokenizers get n-grams of other words, and <s> gets some."""
    marked = by_name(shared_ngrams(["<s>", f"{begun}cat", f"{begun}cats", "ats", "</s>"], 100))
    assert marked == by_name(shared_ngrams(["[PAD]", "cat", "cats", "##ats", "[SEP]"], 100))
    assert [len(rows) for rows in marked] == [0, 3, 5, 2, 0]


def test_the_most_frequent_ngrams_are_kept() -> None:
    """If it fails, the number of rows is not limited, or rare n-grams replace frequent ones."""
    ngrams = shared_ngrams(["hatch", "batch", "bat", "bats"], 3)
    assert ngrams.n_ngrams == 3  # "<ba", "<bat" and "bat" are in three tokens, the n-grams of "atch" in two
    assert by_name(ngrams) == [[], [0, 1, 2], [0, 1, 2], [0, 1, 2]]
    assert shared_ngrams(TOKENS, 0).n_ngrams == 0
    assert shared_ngrams([], 10).n_ngrams == 0


def vectors() -> tuple[SubwordVectors, SubwordNgrams]:
    ngrams = shared_ngrams(TOKENS, 100)
    return subword_vectors(torch.randn(len(TOKENS), 6), ngrams, torch.Generator().manual_seed(0)), ngrams


def by_definition(token_VE: Tensor, ngram_HE: Tensor, ngrams: SubwordNgrams) -> Tensor:
    return torch.stack(
        [
            token + (ngram_HE[rows].sum(dim=0) / len(rows) ** 0.5 if rows else 0)
            for token, rows in zip(token_VE, by_name(ngrams), strict=True)
        ]
    )


def test_training_and_inference_compute_the_same_vectors() -> None:
    """If it fails, other vectors are exported and served than were trained."""
    made, ngrams = vectors()
    expected = by_definition(made.tokens.weight, made.ngrams.weight, ngrams)
    rows = torch.tensor([4, 1, 0, 7, 2])
    assert torch.allclose(made.train().take(rows), expected[rows], atol=1e-6)
    assert torch.allclose(made.eval().weight, expected, atol=1e-6)


def test_tokens_and_ngrams_get_the_true_gradient() -> None:
    """If it fails, token vectors or n-gram vectors are trained with wrong gradients."""
    made, ngrams = vectors()
    rows, direction = torch.tensor([1, 2, 5, 7, 6]), torch.randn(5, 6)
    (made.train().take(rows) * direction).sum().backward()
    token, ngram = made.tokens.weight.clone().requires_grad_(), made.ngrams.weight.clone().requires_grad_()
    (by_definition(token, ngram, ngrams)[rows] * direction).sum().backward()
    for table, true in ((made.tokens, token.grad), (made.ngrams, ngram.grad)):
        rows, gradient = table.pop_gradients()
        assert true is not None
        assert torch.allclose(torch.zeros_like(table.weight).index_copy(0, rows, gradient), true, atol=1e-5)


def test_inference_vectors_follow_every_step() -> None:
    """If it fails, validation measures the weights of an earlier epoch."""
    made, ngrams = vectors()
    before = made.eval().weight.clone()
    made.train().take(torch.tensor([1])).sum().backward()
    for table in (made.tokens, made.ngrams):
        update_rows_(table, *table.pop_gradients(), 0.1)
    after = made.eval().weight
    assert torch.allclose(after, by_definition(made.tokens.weight, made.ngrams.weight, ngrams), atol=1e-6)
    # "runner" was trained; "runners" shares n-grams with it, "winning" does not.
    assert [not torch.equal(before[row], after[row]) for row in (1, 2, 7)] == [True, True, False]


def test_tokens_with_shared_ngrams_start_near_each_other() -> None:
    """If it fails, a word form without training data starts like an unrelated word."""
    recipe = Recipe.model_validate({"name": "small", "encoder": {"dim": 200}})
    encoder = init_model(recipe, 3, torch.ones(len(TOKENS)), TOKENS).encoder
    assert isinstance(encoder, StaticEncoder)
    like = F.normalize(encoder.eval().vectors.weight, dim=1)
    assert like[1] @ like[2] > 0.6 > 0.3 > abs(like[1] @ like[7])


@pytest.mark.parametrize("rows", [0, 50])
def test_the_inference_state_has_one_table_of_token_vectors(tmp_path: Path, rows: int) -> None:
    """If it fails, a checkpoint cannot be opened without its n-grams, or has other vectors."""
    recipe = Recipe.model_validate({"name": "small", "encoder": {"dim": 8, "subword_rows": rows}})
    model = init_model(recipe, 3, torch.ones(len(TOKENS)), TOKENS).eval()
    plain = model_skeleton(recipe, 3, len(TOKENS), tmp_path)
    load_weights(plain, model.inference_state_dict(), tmp_path)
    ids, mask = torch.tensor([[1, 4, 5], [7, 6, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    with torch.no_grad():
        assert torch.allclose(plain.eval().encoder(ids, mask), model.encoder(ids, mask), atol=1e-6)
    assert ("ngram" in model.row_tables()) is (rows > 0)
    assert "ngram" not in plain.row_tables()
