"""The recipes of the six public sets: they have the values that the paper prints, and `provenance` marks these."""

import pytest

from training.recipe.loading import load_recipe, shipped_recipes
from training.recipe.schema import TransformerEncoderRecipe

# training queries of the set, and how many times clustering halves them: the printed rows a batch are N / 2^depth
PUBLIC_SETS = {
    "lf_amazontitles_131k": (294_805, 9),
    "lf_amazon_131k": (294_805, 9),
    "lf_wikiseealsotitles_320k": (693_082, 10),
    "lf_wikiseealso_320k": (693_082, 10),
    "lf_wikititles_500k": (1_813_391, 11),
    "lf_amazontitles_1_3m": (2_248_619, 11),
}


def test_all_six_sets_are_shipped() -> None:
    """If this failed, a user with a public set's files would find no recipe for it, or one that nothing checks."""
    assert {name for name in shipped_recipes() if name.startswith("lf_")} == set(PUBLIC_SETS)


@pytest.mark.parametrize("name", PUBLIC_SETS)
def test_a_batch_is_one_leaf_of_the_clustering(name: str) -> None:
    """If this failed, batches would not be the published ones: N halved `depth` times."""
    queries, depth = PUBLIC_SETS[name]
    assert load_recipe(name).batching.batch_size == -(-queries // 2**depth)


@pytest.mark.parametrize("name", PUBLIC_SETS)
def test_printed_settings_are_kept_as_printed(name: str) -> None:
    """If this failed, a run called the paper's would use other settings than the paper's."""
    recipe = load_recipe(name)
    batching, heads = recipe.batching, recipe.heads
    assert (batching.positives, batching.hard_negatives, batching.refresh_epochs) == (3, 6, 5)
    assert 3000 <= batching.pool_size <= 3500
    assert 512 <= (heads.dual_encoder.dim or 0) + (heads.classifier.dim or 0) <= 768
    assert recipe.optimizer.encoder_lr in {1e-4, 2e-4, 1e-3}
    assert isinstance(recipe.encoder, TransformerEncoderRecipe)
    assert recipe.encoder.layers == 6
    assert batching.label_queries.share == 0.0  # queries alone
    assert recipe.validation.popularities == (0.0,)  # two cosines and nothing else


@pytest.mark.parametrize("name", PUBLIC_SETS)
def test_every_field_is_marked_and_no_unprinted_one_as_published(name: str) -> None:
    """If this failed, a reader would take a number of ours for one of the paper's."""
    recipe = load_recipe(name)
    origins = recipe.origins()
    assert set(origins.values()) == {"published", "derived", "ours"}
    assert recipe.provenance.paper
    unprinted = ["optimizer.epochs", "loss.dual_encoder_share", "loss.classifier.bce", "seed"]
    unprinted += [
        f"loss.{head}.{key}" for head in ("dual_encoder", "classifier") for key in ("temperature", "query_to_label")
    ]
    assert {origins[key] for key in unprinted} == {"ours"}
    assert not set(recipe.provenance.published) & set(recipe.provenance.derived)


def test_batch_sizes_are_published_for_three_sets_only() -> None:
    """If this failed, a batch size worked out from the number of queries would be passed off as printed."""
    marks = [load_recipe(name).origins()["batching.batch_size"] for name in PUBLIC_SETS]
    assert sorted(marks) == ["derived"] * 3 + ["published"] * 3
