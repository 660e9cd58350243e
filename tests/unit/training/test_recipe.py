"""Recipes: schema, loading and overrides."""

import json
from pathlib import Path

import pytest

from retrieval.errors import RecipeError
from training.recipe.loading import load_recipe, shipped_recipes
from training.recipe.sections import StaticEncoderRecipe, TransformerEncoderRecipe


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_is_valid_and_named_as_its_file(name: str) -> None:
    """If it fails, `diptych train --recipe NAME` refuses a shipped recipe."""
    assert load_recipe(name).name == name


def test_overrides_reach_any_key_with_its_type() -> None:
    """If it fails, --set leaves a value as text or misses the key."""
    recipe = load_recipe(
        "default",
        [
            "batching.batch_size=64",
            "optimizer.classifier_lr=3e-2",
            "batching.clustered=true",
            "heads.dual_encoder.dim=null",
            "validation.metrics=[P@1, PSP@5]",
        ],
    )
    assert recipe.batching.batch_size == 64
    assert recipe.optimizer.classifier_lr == pytest.approx(0.03)
    assert recipe.batching.clustered is True
    assert recipe.heads.dual_encoder.dim is None
    assert recipe.validation.metrics == ("P@1", "PSP@5")


@pytest.mark.parametrize("name", ["default", "lf_amazontitles_131k"])
def test_every_key_of_a_recipe_can_be_set(name: str) -> None:
    """If it fails, some key cannot be set on the command line."""
    recipe = load_recipe(name)
    for key in recipe.origins():
        value: object = recipe.model_dump(mode="json")
        for part in key.split("."):
            value = value[part]  # type: ignore[index]
        assert load_recipe(name, [f"{key}={json.dumps(value)}"]).differences(recipe) == []


def test_the_encoder_is_chosen_by_its_kind() -> None:
    """If it fails, a transformer recipe trains a static encoder."""
    assert isinstance(load_recipe("default").encoder, StaticEncoderRecipe)
    chosen = load_recipe("default", ["encoder={kind: transformer, model: some/model, layers: 2}"]).encoder
    assert isinstance(chosen, TransformerEncoderRecipe)
    assert chosen.layers == 2


def test_an_override_changes_its_own_key_and_no_other() -> None:
    """If it fails, setting one term of a loss silently resets its temperature."""
    changed = load_recipe("default", ["loss.dual_encoder.supcon=0.5", "loss.classifier.query_to_label=1"])
    assert changed.differences(load_recipe("default")) == [
        "loss.classifier.query_to_label: 1.0 → 0.5",
        "loss.dual_encoder.supcon: 0.5 → 0.0",
    ]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("batching.batchsize=3", "'batching.batchsize' is not a key of a recipe (value 3)"),
        ("batching.batch_size=0", "'batching.batch_size': Input should be greater than or equal to 2 (given 0)"),
        ("batching.batch_size", "is not of the form key=value"),
        ("seed.inner=3", "'seed' is a value, not a section"),
        ("loss.dual_encoder.temperature=0", "'loss.dual_encoder.temperature'"),
        ("loss.dual_encoder.decoupled_softmax=0", "set at least one weight"),
        ("validation.metrics=[P@2]", "P@2"),
        ("encoder={kind: recurrent}", "recurrent"),
        ("optimizer.token_lr=.nan", "optimizer.token_lr"),
    ],
)
def test_a_bad_override_is_refused_with_its_key_and_value(override: str, sentence: str) -> None:
    """If it fails, a misspelt key is ignored, or ends in a traceback."""
    with pytest.raises(RecipeError) as caught:
        load_recipe("default", ["seed=1", override])
    assert sentence in str(caught.value)


def test_an_unknown_recipe_names_the_known_ones() -> None:
    """If it fails, the error of a misspelt --recipe does not list the recipes."""
    with pytest.raises(RecipeError, match="default, depsl_lf_amazontitles_1_3m"):
        load_recipe("keyword")


def test_a_file_that_is_not_a_recipe_is_one_sentence(tmp_path: Path) -> None:
    """If it fails, a wrong file as recipe ends in a traceback."""
    path = tmp_path / "recipe.yaml"
    for text in ("- a\n- list\n", "a: [\n"):
        path.write_text(text)
        with pytest.raises(RecipeError, match=r"recipe\.yaml"):
            load_recipe(str(path))


def test_a_copied_file_is_the_same_recipe(tmp_path: Path) -> None:
    """If it fails, a copy of a recipe has other defaults than the shipped one."""
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nbatching: {batch_size: 128}\n")
    assert load_recipe(str(path)).differences(load_recipe("default", ["batching.batch_size=128"])) == []
    assert load_recipe(str(path)).differences(load_recipe("default")) == ["batching.batch_size: 128 → 512"]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("encoder={kind: static}", "cascade needs a transformer, whose layers it reads: set encoder.model"),
        ("memory.max_queries=10", "cascade excludes memory.max_queries: set memory.max_queries to 0"),
        ("loss.dual_encoder_share=0.5", "cascade excludes loss.dual_encoder_share: set loss.dual_encoder_share to 0.0"),
        ("batching.label_queries.share=null", "cascade excludes batching.label_queries.share"),
        ("optimizer.epochs=2", "cascade.warmup_epochs and cascade.final_epochs add up to 4: give at most"),
        ("cascade.clusters=[100]", "layers has 4 values: give 2, one per level"),
        ("cascade.clusters=[128, 500, 2048]", "clusters must be ascending powers of two"),
        ("cascade.clusters=[512, 512, 2048]", "clusters must be ascending powers of two"),
        ("cascade.shortlist=[1, 2]", "shortlist has 2 values: give 3, as clusters has"),
        ("cascade.dropout=[0.1]", "dropout has 1 values: give 4, one per level"),
    ],
)
def test_a_cascade_with_other_parts_is_refused(override: str, sentence: str) -> None:
    """If it fails, a cascade ignores a setting, or a setting without a value for a level ends in a traceback."""
    with pytest.raises(RecipeError) as caught:
        load_recipe("systems/cascadexml", [override])
    assert sentence in str(caught.value)


def test_the_variants_of_a_cascade_are_set_on_the_command_line() -> None:
    """If it fails, the experiment cannot be repeated with --set, as the recipe's file says."""
    last = load_recipe("systems/cascadexml", ["cascade.layers=[[6],[6],[6],[6]]"])
    assert last.differences(load_recipe("systems/cascadexml")) == [
        "cascade.layers: ((6,), (6,), (6,), (6,)) → ((2, 3), (4,), (5,), (6,))"
    ]
    two = ["clusters=[1024]", "layers=[[3,4],[6]]", "shortlist=[32]", "dropout=[0.2,0.5]", "loss_weights=[1.0,1.0]"]
    assert load_recipe("systems/cascadexml", [f"cascade.{key}" for key in two]).cascade is not None
