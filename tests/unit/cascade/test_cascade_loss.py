"""The loss of a cascade: candidates, shortlists with forced true nodes, and binary cross-entropy."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertModel

from tests.support.training.cascade_run import cascade_recipe
from training.data.ragged import Ragged
from training.data.token_cache import TokenizedTexts
from training.model.cascade import CascadeModel
from training.model.transformer_encoder import LayerEncoder
from training.optim import cascade_loss as loss
from training.recipe.sections import CascadeRecipe

WIDTH, LABELS = 8, 13
PARENTS = [np.array([0, 0, 1, 1], np.int32), np.array([0, 1, 2, 3] * 3 + [0], np.int32)]


def cascade(shortlist: tuple[int, int], layers: int = 2) -> CascadeModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20, hidden_size=WIDTH, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=16
    )
    recipe = CascadeRecipe(
        clusters=(2, 4), layers=((1, 2), (1,), (2,)), shortlist=shortlist, dropout=(0.0, 0.0, 0.0),
        loss_weights=(1.0, 2.0, 3.0), projection_dropout=0.0,
    )  # fmt: skip
    return CascadeModel(LayerEncoder(BertModel(config, add_pooling_layer=False), (1, 2)), recipe, PARENTS)


def batch(true: list[list[int]], excluded: list[list[int]]) -> loss.CascadeBatch:
    pairs = [Ragged.from_lists(rows) for rows in (true, excluded)]
    tensors = [torch.from_numpy(part.astype(np.int64)) for rows in pairs for part in (rows.row_of_value, rows.values)]
    return loss.CascadeBatch(len(true), TokenizedTexts(Ragged.from_lists([[2]] * len(true)), 0), *tensors)


def test_with_whole_shortlists_the_loss_is_that_of_all_nodes() -> None:
    """If it fails, a level reads another feature, other candidates or other targets than those of its nodes."""
    model = cascade((2, 4))
    encoded_QF = torch.randn(2, 2 * WIDTH)
    terms = loss.cascade_loss(model, batch([[0, 5], [12]], [[], []]), encoded_QF)
    true_by_level = [[[0], [0]], [[0, 1], [0]], [[0, 5], [12]]]
    for level, (feature_QE, true, rows) in enumerate(
        zip(model.features(encoded_QF), true_by_level, model.level_rows(), strict=True)
    ):
        target_QN = torch.zeros(2, len(rows))
        for query, nodes in enumerate(true):
            target_QN[query, nodes] = 1
        logits_QN = F.pad(feature_QE, (0, 1), value=1.0) @ torch.from_numpy(rows).T
        expected = (level + 1) * F.binary_cross_entropy_with_logits(logits_QN, target_QN)
        torch.testing.assert_close(terms[f"classifier/level_{level}/bce"], expected)


def test_an_excluded_label_is_neither_positive_nor_negative() -> None:
    """If it fails, a query learns that a label which may be true is wrong."""
    model = cascade((2, 4))
    encoded_QF = torch.randn(1, 2 * WIDTH)
    loss.cascade_loss(model, batch([[0]], [[5]]), encoded_QF)["classifier/level_2/bce"].backward()
    rows_R, gradient_RE = model.cascade.labels.pop_gradients()
    moved = rows_R[gradient_RE.abs().sum(dim=1) > 0].tolist()
    assert moved == [label for label in range(LABELS) if label != 5]


def test_true_clusters_are_kept_at_any_score() -> None:
    """If it fails, a label below a cluster with a low score is never a candidate and never learned."""
    model = cascade((1, 1))
    with torch.no_grad():
        model.cascade.bias[0][:] = torch.tensor([9.0, -9.0])
        model.cascade.bias[1][:] = torch.tensor([9.0, 9.0, -9.0, 9.0])
    encoded_QF = torch.randn(1, 2 * WIDTH)
    loss.cascade_loss(model, batch([[2]], [[]]), encoded_QF)["classifier/level_2/bce"].backward()
    assert model.cascade.labels.pop_gradients()[0].tolist() == [2, 6, 10], "the labels of the true cluster 2"


def test_scores_that_select_have_no_gradient() -> None:
    """If it fails, the loss of a level changes the classifiers above it through the selection."""
    model = cascade((1, 2))
    loss.cascade_loss(model, batch([[0, 7]], [[]]), torch.randn(1, 2 * WIDTH))["classifier/level_2/bce"].backward()
    assert all(parameter.grad is None for parameter in (*model.cascade.rows, *model.cascade.bias))


def test_padding_is_never_kept_before_a_node() -> None:
    """If it fails, a query with few candidates keeps padding and loses nodes."""
    candidates = loss.Candidates(torch.tensor([[4, -1, 7]]), torch.tensor([[False, False, True]]))
    scores_QC = torch.tensor([[0.1, -torch.inf, 0.05]])
    assert loss.keep_best(candidates, scores_QC, 3).tolist() == [[7, 4, -1]]
    assert loss.keep_best(candidates, scores_QC, 9).tolist() == [[7, 4, -1]], "at most all"


def test_children_of_padding_are_padding() -> None:
    """If it fails, a short list of nodes brings the children of node 0 into the candidates."""
    children_NM = torch.tensor([[0, 1], [2, -1]])
    assert loss.expand(torch.tensor([[1, -1], [1, 0]]), children_NM).tolist() == [[2, -1, -1, -1], [2, -1, 0, 1]]


def test_pairs_are_found_in_their_own_rows_only() -> None:
    """If it fails, a label of one query is a positive of another."""
    node_QC = torch.tensor([[3, 1, -1], [1, 2, 3]])
    row_M, node_M = torch.tensor([0, 1, 1]), torch.tensor([1, 3, 9])
    assert loss.pairs_among(node_QC, row_M, node_M).tolist() == [[False, True, False], [False, False, True]]
    nothing = torch.zeros(0, dtype=torch.int64)
    assert not loss.pairs_among(node_QC, nothing, nothing).any()


def test_dropout_is_that_of_each_level() -> None:
    """If it fails, a level is trained without its dropout, or drops features while ranking."""
    model = cascade((2, 4))
    model.recipe = model.recipe.model_copy(update={"dropout": (0.0, 0.9, 0.0)})
    feature_BE, nodes = torch.ones(1, WIDTH), torch.arange(4)
    level_1 = [model.logits(1, feature_BE, nodes) for _ in range(3)]
    assert not torch.equal(level_1[0], level_1[1]) or not torch.equal(level_1[0], level_1[2])
    assert torch.equal(model.logits(0, feature_BE, None), model.logits(0, feature_BE, None))
    model.eval()
    assert torch.equal(model.logits(1, feature_BE, nodes), model.logits(1, feature_BE, nodes))


def test_a_layer_that_the_encoder_lacks_is_one_sentence(tmp_path: Path) -> None:
    """If it fails, a wrong layer ends in a traceback."""
    from retrieval.errors import RecipeError
    from training.model.cascade import init_cascade

    recipe = cascade_recipe(tmp_path, "cascade.layers=[[1],[2],[3]]")
    with pytest.raises(RecipeError, match=r"cascade\.layers has 3, but the encoder has 2 layers"):
        init_cascade(recipe, PARENTS)
