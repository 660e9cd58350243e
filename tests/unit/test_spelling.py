"""Token vectors made of their own part and of the pieces of their spelling, against their definition."""

import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training.checkpoint.files import fill_model
from training.model.static_encoder import StaticEncoder
from training.model.subword_ngrams import SpelledVectors, Spelling, shared_pieces, spelled
from training.model.unified import empty_model, fresh_model
from training.recipe.schema import Recipe

TOKENS = ["[PAD]", "runner", "runners", "run", "##runs", "##nning", "a", "winning", "[CLS]", "#"]


def by_name(spelling: Spelling) -> list[list[int]]:
    pairs = itertools.pairwise(spelling.offset_V1.tolist())
    return [spelling.piece_S[begin:end].tolist() for begin, end in pairs]


def test_pieces_are_the_runs_of_letters_that_two_tokens_share() -> None:
    """If this failed, tokens would share what they do not spell, or the start and the end of a word would be lost."""
    tokens = ["[PAD]", "cat", "cats", "##ats", "dog", "[CAT]", "a", ""]
    spelling = shared_pieces(tokens, 100)
    rows = dict(zip(tokens, by_name(spelling), strict=True))
    # Equally shared pieces go by their letters. "ats>" is in "cats" alone: of "##ats" it is the whole.
    names = ["<ca", "<cat", "ats", "cat", "ts>"]
    assert spelling.pieces == len(names)
    assert {token: [names[row] for row in of_token] for token, of_token in rows.items() if of_token} == {
        "cat": ["<ca", "<cat", "cat"],
        "cats": ["<ca", "<cat", "ats", "cat", "ts>"],
        "##ats": ["ats", "ts>"],
    }


@pytest.mark.parametrize("begun", ["▁", "Ġ"])
def test_tokens_that_mark_a_beginning_are_spelt_as_those_that_mark_a_continuation(begun: str) -> None:
    """If this failed, a start from another kind of tokenizer would take pieces of words for words, and <s> for one."""
    marked = by_name(shared_pieces(["<s>", f"{begun}cat", f"{begun}cats", "ats", "</s>"], 100))
    assert marked == by_name(shared_pieces(["[PAD]", "cat", "cats", "##ats", "[SEP]"], 100))
    assert [len(rows) for rows in marked] == [0, 3, 5, 2, 0]


def test_of_too_many_pieces_the_most_shared_are_kept() -> None:
    """If this failed, the cap on rows would be no cap, or would keep pieces that hardly anything shares."""
    spelling = shared_pieces(["hatch", "batch", "bat", "bats"], 3)
    assert spelling.pieces == 3  # "<ba", "<bat", "bat" stand in three tokens, the pieces of "atch" in two
    assert by_name(spelling) == [[], [0, 1, 2], [0, 1, 2], [0, 1, 2]]
    assert shared_pieces(TOKENS, 0).pieces == 0
    assert shared_pieces([], 10).pieces == 0


def vectors() -> tuple[SpelledVectors, Spelling]:
    spelling = shared_pieces(TOKENS, 100)
    return spelled(torch.randn(len(TOKENS), 6), spelling, torch.Generator().manual_seed(0)), spelling


def by_definition(own_VE: Tensor, piece_HE: Tensor, spelling: Spelling) -> Tensor:
    return torch.stack(
        [
            own + (piece_HE[rows].sum(dim=0) / len(rows) ** 0.5 if rows else 0)
            for own, rows in zip(own_VE, by_name(spelling), strict=True)
        ]
    )


def test_learning_and_answering_add_up_alike() -> None:
    """If this failed, what is trained would not be what is exported and served."""
    made, spelling = vectors()
    expected = by_definition(made.own.weight, made.pieces.weight, spelling)
    rows = torch.tensor([4, 1, 0, 7, 2])
    assert torch.allclose(made.train().take(rows), expected[rows], atol=1e-6)
    assert torch.allclose(made.eval().weight, expected, atol=1e-6)


def test_both_parts_get_the_true_gradient() -> None:
    """If this failed, a token's own vector or its pieces would learn something else than the loss says."""
    made, spelling = vectors()
    rows, direction = torch.tensor([1, 2, 5, 7, 6]), torch.randn(5, 6)
    (made.train().take(rows) * direction).sum().backward()
    own, piece = made.own.weight.clone().requires_grad_(), made.pieces.weight.clone().requires_grad_()
    (by_definition(own, piece, spelling)[rows] * direction).sum().backward()
    for table, true in ((made.own, own.grad), (made.pieces, piece.grad)):
        ((taken, leaf),) = table._taken
        assert true is not None
        assert torch.allclose(torch.zeros_like(table.weight).index_copy(0, taken, leaf.grad), true, atol=1e-5)


def test_answers_see_every_step() -> None:
    """If this failed, validation would measure the weights of an earlier epoch."""
    made, spelling = vectors()
    before = made.eval().weight.clone()
    made.train().take(torch.tensor([1])).sum().backward()
    for table in (made.own, made.pieces):
        table.step(0.1)
    after = made.eval().weight
    assert torch.allclose(after, by_definition(made.own.weight, made.pieces.weight, spelling), atol=1e-6)
    # "runner" was learned from, "runners" shares its pieces, "winning" nothing.
    assert [not torch.equal(before[row], after[row]) for row in (1, 2, 7)] == [True, True, False]


def test_tokens_begin_near_those_they_are_spelt_like() -> None:
    """If this failed, a word form that training never saw would begin as any other word."""
    recipe = Recipe.model_validate({"name": "small", "encoder": {"dim": 200}})
    encoder = fresh_model(recipe, 3, torch.ones(len(TOKENS)), TOKENS).encoder
    assert isinstance(encoder, StaticEncoder)
    like = F.normalize(encoder.eval().vectors.weight, dim=1)
    assert like[1] @ like[2] > 0.6 > 0.3 > abs(like[1] @ like[7])


@pytest.mark.parametrize("rows", [0, 50])
def test_what_answers_is_one_plain_table(tmp_path: Path, rows: int) -> None:
    """If this failed, a checkpoint could be opened only with its pieces, or would answer with other vectors."""
    recipe = Recipe.model_validate({"name": "small", "encoder": {"dim": 8, "subword_rows": rows}})
    model = fresh_model(recipe, 3, torch.ones(len(TOKENS)), TOKENS).eval()
    plain = empty_model(recipe, 3, len(TOKENS), tmp_path)
    fill_model(plain, model.answering_state(), tmp_path)
    ids, mask = torch.tensor([[1, 4, 5], [7, 6, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    with torch.no_grad():
        assert torch.allclose(plain.eval().encoder(ids, mask), model.encoder(ids, mask), atol=1e-6)
    assert ("piece" in model.row_tables()) is (rows > 0)
    assert "piece" not in plain.row_tables()
