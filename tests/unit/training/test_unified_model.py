"""The unified model and its two encoders."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ModernBertConfig,
    ModernBertModel,
    T5Config,
    T5Model,
)

from retrieval.errors import RecipeError
from training.model.device import uses_bfloat16
from training.model.transformer_encoder import MIN_TOKENS, TransformerEncoder, groups_by_length
from training.model.unified import UnifiedModel, init_model, model_skeleton
from training.optim.optimizers import dense_optimizer
from training.recipe.loading import load_recipe
from training.recipe.schema import Recipe

IDS = torch.tensor([[5, 6, 7], [8, 0, 0], [5, 5, 0]])
MASK = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]])


def small(**sections: object) -> Recipe:
    return Recipe.model_validate({"name": "small", "encoder": {"kind": "static", "dim": 8}, **sections})


def test_search_vectors_are_normalized_and_training_vectors_of_the_classifier_are_not() -> None:
    """If it fails, the score is not a mean of two cosines, or training normalizes Φ_C."""
    model = init_model(small(heads={"classifier": {"dim": 5}}), n_labels=4, rarity_V=torch.ones(12)).eval()
    dual_BD, classifier_BC = model.query_vectors(IDS, MASK)
    assert dual_BD.shape == (3, 8)
    assert classifier_BC.shape == (3, 5)
    for half in (dual_BD, classifier_BC, model.label_vectors(IDS, MASK)):
        assert torch.allclose(half.norm(dim=1), torch.ones(3), atol=1e-6)
    _, raw_BC = model.training_vectors(model.encoder(IDS, MASK))
    assert not torch.allclose(raw_BC.norm(dim=1), torch.ones(3), atol=1e-3)


@pytest.fixture
def tiny_bert(tmp_path: Path) -> Path:
    """A real BERT of two layers, saved as a model folder."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    BertModel(config).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def transformer(folder: Path, **encoder: object) -> Recipe:
    return Recipe.model_validate({"name": "t", "encoder": {"kind": "transformer", "model": str(folder), **encoder}})


def test_a_transformer_is_mean_pooled_without_padding(tiny_bert: Path) -> None:
    """If it fails, a query's vector depends on its batch."""
    model = init_model(transformer(tiny_bert), n_labels=3, rarity_V=torch.ones(40)).eval()
    together = model.encoder(IDS, MASK)
    alone = model.encoder(IDS[1:2, :1], MASK[1:2, :1])
    assert torch.allclose(together[1], alone[0], atol=1e-5)


def test_training_encodes_groups_by_length_with_the_same_result(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it fails, a text gets the vector of another, is truncated, or has no gradient."""
    monkeypatch.setitem(MIN_TOKENS, "cpu", 6)
    silent = BertConfig.from_pretrained(tiny_bert, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    silent.save_pretrained(tiny_bert)
    model = init_model(transformer(tiny_bert), n_labels=3, rarity_V=torch.ones(40)).eval()
    lengths_B = torch.tensor([4, 1, 7, 2, 7, 3, 1, 5])
    ids_BT, mask_BT = torch.randint(1, 40, (8, 7)), (torch.arange(7) < lengths_B[:, None]).long()
    with torch.no_grad():
        expected_BE = model.encoder(ids_BT, mask_BT)
    learned_BE = model.train().encoder(ids_BT, mask_BT)
    assert torch.allclose(learned_BE, expected_BE, atol=1e-5)
    learned_BE.sum().backward()
    assert all(parameter.grad is not None for parameter in model.encoder.transformer.encoder.parameters())  # type: ignore[union-attr]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60).map(sorted), st.integers(1, 100))
def test_texts_of_equal_length_are_in_one_group(sorted_B: list[int], least: int) -> None:
    """If it fails, texts are omitted, padded needlessly, or encoded in too many calls."""
    groups = groups_by_length(sorted_B, least)
    assert [place for start, stop in groups for place in range(start, stop)] == list(range(len(sorted_B)))
    for start, stop in groups[:-1]:
        assert sorted_B[stop - 1] < sorted_B[stop]
        assert (stop - start) * sorted_B[stop - 1] >= least
        shorter = [at for at in range(start + 1, stop) if sorted_B[at] > sorted_B[at - 1]]
        assert all((at - start) * sorted_B[at - 1] < least for at in shorter)


def test_only_the_first_layers_are_used_and_too_many_are_refused(tiny_bert: Path) -> None:
    """If it fails, `encoder.layers` is ignored."""
    model = init_model(transformer(tiny_bert, layers=1), n_labels=3, rarity_V=torch.ones(40))
    assert isinstance(model.encoder, TransformerEncoder)
    assert model.encoder.transformer.config.num_hidden_layers == 1  # type: ignore[union-attr]
    assert not any("layer.1." in name for name in model.state_dict())
    with pytest.raises(RecipeError, match="has 2: give at most that"):
        init_model(transformer(tiny_bert, layers=3), n_labels=3, rarity_V=torch.ones(40))


def test_a_missing_model_folder_is_one_sentence(tmp_path: Path) -> None:
    """If it fails, a wrong path ends in a traceback of another library."""
    with pytest.raises(RecipeError, match="there is no such folder"):
        init_model(transformer(tmp_path / "nowhere"), n_labels=3, rarity_V=torch.ones(40))


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors"])
def test_a_damaged_model_folder_is_one_sentence(tiny_bert: Path, damage: str) -> None:
    """If it fails, an incomplete model ends in a traceback of another library."""
    whole = (tiny_bert / damage).read_bytes()
    (tiny_bert / damage).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RecipeError, match="cannot be loaded"):
        init_model(transformer(tiny_bert), n_labels=3, rarity_V=torch.ones(40))


def test_max_tokens_above_the_context_length_is_refused(tiny_bert: Path) -> None:
    """If it fails, the first long text ends a run after hours."""
    with pytest.raises(RecipeError, match="reads 32 tokens"):
        init_model(transformer(tiny_bert, max_tokens=33), n_labels=3, rarity_V=torch.ones(40))


@pytest.mark.parametrize("architecture", ["t5", "modernbert", "distilbert"])
def test_other_architectures_encode_and_reload(tmp_path: Path, architecture: str) -> None:
    """If it fails, only BERT works: decoders, per-layer settings and other names break."""
    torch.manual_seed(0)
    made = {
        "t5": lambda: T5Model(T5Config(vocab_size=40, d_model=16, d_ff=32, num_layers=2, num_heads=2, d_kv=8)),
        "modernbert": lambda: ModernBertModel(
            ModernBertConfig(
                vocab_size=40,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=4,
                num_attention_heads=2,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                cls_token_id=1,
                sep_token_id=2,
            )
        ),
        "distilbert": lambda: DistilBertModel(
            DistilBertConfig(vocab_size=40, dim=16, hidden_dim=32, n_layers=2, n_heads=2)
        ),
    }
    made[architecture]().save_pretrained(tmp_path / "model")
    recipe = transformer(tmp_path / "model", layers=1)
    model = init_model(recipe, n_labels=3, rarity_V=torch.ones(40))
    assert isinstance(model.encoder, TransformerEncoder)
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "config.json").write_text(model.encoder.transformer.config.to_json_string())  # type: ignore[union-attr, operator]
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    empty = model_skeleton(recipe, 3, 40, tmp_path / "again")
    empty.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    with torch.no_grad():
        answering_BE = model.eval().encoder(IDS, MASK)
        assert torch.equal(empty.eval().encoder(IDS, MASK), answering_BE)
    for module in model.encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
    learning_BE = model.train().encoder(IDS, MASK)
    assert torch.allclose(learning_BE, answering_BE, atol=1e-5)
    (learning_BE * torch.randn_like(learning_BE)).sum().backward()  # a plain sum of normalized values has no gradient
    words = model.encoder.transformer.get_input_embeddings().weight.grad  # type: ignore[union-attr, operator]
    assert words.abs().sum(dim=1).nonzero().flatten().tolist() == sorted(IDS[MASK.bool()].unique().tolist())


def test_a_skeleton_loads_the_weights_of_an_initialized_model(tiny_bert: Path) -> None:
    """If it fails, a checkpoint cannot be loaded without its pretrained model."""
    recipe = transformer(tiny_bert, layers=1)
    model = init_model(recipe, n_labels=3, rarity_V=torch.ones(40))
    assert isinstance(model.encoder, TransformerEncoder)
    model.encoder.transformer.config.save_pretrained(tiny_bert / "again")  # type: ignore[union-attr, operator]
    empty = model_skeleton(recipe, 3, 40, tiny_bert / "again")
    empty.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(empty.eval().encoder(IDS, MASK), model.eval().encoder(IDS, MASK))


def test_every_dense_weight_has_one_optimizer_and_rows_have_theirs(tiny_bert: Path) -> None:
    """If it fails, some weights are never trained, or AdamW decays ψ."""
    model = init_model(transformer(tiny_bert), n_labels=3, rarity_V=torch.ones(40))
    dense = dense_optimizer(model, transformer(tiny_bert).optimizer)
    held = [id(parameter) for group in dense.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())
    assert list(model.row_tables()) == ["classifier"]
    assert list(init_model(small(), 3, torch.ones(12)).row_tables()) == [
        "classifier",
        "token",
        "token_weight",
        "place",
        "pair",
    ]


def test_the_encoder_and_the_hardware_or_the_recipe_select_bfloat16() -> None:
    """If it fails, a static encoder loses precision without benefit, or precision=float32 is ignored."""
    cpu = torch.device("cpu")
    assert not uses_bfloat16(small(), cpu)
    assert uses_bfloat16(small(precision="bfloat16"), cpu)
    assert not uses_bfloat16(transformer(Path("any")).model_copy(update={"precision": "float32"}), cpu)


def test_the_default_recipe_builds_a_model() -> None:
    """If it fails, `diptych train` without --recipe does not start."""
    assert isinstance(init_model(load_recipe("default"), 10, torch.ones(100)), UnifiedModel)
