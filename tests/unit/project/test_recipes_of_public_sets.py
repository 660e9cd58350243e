"""Published recipes: every value that their `provenance` marks as published is the one that is printed."""

from functools import reduce

import pytest

from training.recipe.loading import load_recipe, shipped_recipes
from training.recipe.schema import Recipe

# Keys with the place where UniDEC (chapter 2 of the thesis that arXiv 2405.03714 became part of) prints their value.
EVERYWHERE = {
    "batching.clustered": (True, "Algorithm 1"),
    "batching.positives": (3, "Figure 2.2"),  # β
    "batching.hard_negatives": (6, "section 2.4.3"),  # η, "typically"
    "batching.refresh_epochs": (5, "section 2.4"),  # τ
    "heads.dual_encoder.dropout": (0.1, "section 2.4"),
    "loss.dual_encoder.decoupled_softmax": (1.0, "Tables 2.4 and 2.6"),
    "optimizer.heads_lr": (2e-4, "section 2.4"),
}
TRANSFORMER = EVERYWHERE | {
    "encoder.kind": ("transformer", "section 2.4"),
    "encoder.layers": (6, "section 2.4"),
    "optimizer.encoder_lr": (1e-4, "section 2.4"),
}
CLASSIFIER = {
    "heads.classifier.dropout": (0.1, "section 2.4"),
    "loss.dual_encoder.query_to_label": (0.5, "section 2.3.2"),  # λ_D, for all datasets
    "loss.classifier.decoupled_softmax": (1.0, "Table 2.4"),
    "loss.classifier.query_to_label": (0.5, "section 2.3.3"),  # λ_C
    "optimizer.classifier_lr": (1e-3, "section 2.4"),
    "validation.fixed_weight": (0.5, "section 2.3.4"),
}


def _unidec(dim: int, batch: int | None = None, pool: int | None = None) -> dict[str, tuple[object, str]]:
    """Return the printed values of a UniDEC recipe; Table 2.2 prints the width of both heads together."""
    table = {f"heads.{head}.dim": (dim, "Table 2.2") for head in ("dual_encoder", "classifier")}
    if batch is not None:
        table |= {"batching.batch_size": (batch, "Table 2.3"), "batching.pool_size": (pool, "Table 2.3")}
    return TRANSFORMER | CLASSIFIER | table


def _depsl(batch: int, direction: float, where: str, **more: tuple[object, str]) -> dict[str, tuple[object, str]]:
    return TRANSFORMER | {
        "batching.batch_size": (batch, "section 2.4.4" if batch == 2048 else "Table 2.3"),
        "loss.dual_encoder_share": (1.0, "section 2.4"),
        "loss.dual_encoder.query_to_label": (direction, where),
        **{key.replace("__", "."): value for key, value in more.items()},
    }


PRINTED = {
    "lf_amazon_131k": _unidec(384, 576, 3000),
    "lf_wikiseealso_320k": _unidec(384, 677, 3500),
    "lf_amazontitles_1_3m": _unidec(256, 1098, 3000),
    "lf_amazontitles_131k": _unidec(384),
    "lf_wikiseealsotitles_320k": _unidec(384),
    "lf_wikititles_500k": _unidec(384),
    "depsl_lf_wikipedia_500k": _depsl(221, 0.5, "section 2.3.2", batching__pool_size=(3000, "Table 2.3")),
    # Table 2.6: the results of DePSL on this set in Tables 2.2 and 2.3 are those without the symmetric loss.
    "depsl_lf_amazontitles_1_3m": _depsl(
        2200, 1.0, "Table 2.6", batching__pool_size=(4000, "Table 2.3"), heads__dual_encoder__dim=(384, "Table 2.2")
    ),
    "query2bid": _depsl(
        2048, 0.5, "section 2.3.2",
        heads__dual_encoder__dim=(64, "section 2.4.1"), encoder__max_tokens=(12, "section 2.4.4"),
    ),
    "systems/unidec": EVERYWHERE | _unidec(384, 576, 3000),
}  # fmt: skip
for of_the_encoder in ("encoder.kind", "encoder.layers", "optimizer.encoder_lr"):
    del PRINTED["systems/unidec"][of_the_encoder]
# training queries of the set, and how many times clustering halves them: rows per batch are N / 2^depth
PUBLIC_SETS = {
    "lf_amazontitles_131k": (294_805, 9),
    "lf_amazon_131k": (294_805, 9),
    "lf_wikiseealsotitles_320k": (693_082, 10),
    "lf_wikiseealso_320k": (693_082, 10),
    "lf_wikititles_500k": (1_813_391, 11),
    "lf_amazontitles_1_3m": (2_248_619, 11),
}
CODE = "github.com/xmc-aalto/cascadexml"  # of CascadeXML's authors
PRINTED["systems/cascadexml"] = {
    "encoder.kind": ("transformer", "section 4"),
    "cascade.dropout": ((0.2, 0.25, 0.4, 0.5), f"{CODE}, main.py"),
    "cascade.loss_weights": ((1.0, 1.0, 1.0, 1.0), f"{CODE}, main.py"),
    "cascade.projection_dropout": (0.2, f"{CODE}, CascadeXML.py"),
    "cascade.warmup_epochs": (1.0, f"{CODE}, main.py"),
    "cascade.final_epochs": (3.0, f"{CODE}, Runner.py"),
    "optimizer.weight_decay": (0.05, f"{CODE}, main.py"),
}
UNPRINTED = [
    "optimizer.epochs", "loss.classifier.bce", "seed", "loss.dual_encoder.temperature", "loss.classifier.temperature",
]  # fmt: skip


def value_of(recipe: Recipe, key: str) -> object:
    return reduce(getattr, key.split("."), recipe)


def test_every_recipe_with_published_values_is_compared() -> None:
    """If this failed, a recipe could claim published values that nothing checks."""
    assert {name for name in shipped_recipes() if load_recipe(name).provenance.published} == set(PRINTED)


@pytest.mark.parametrize("name", PRINTED)
def test_published_values_are_the_printed_ones(name: str) -> None:
    """If this failed, a run called the paper's would use other settings than the paper's."""
    recipe = load_recipe(name)
    assert set(recipe.provenance.published) == set(PRINTED[name]), "marked as published, and printed"
    for key, (printed, place) in PRINTED[name].items():
        assert value_of(recipe, key) == printed, f"{key}, {place}"


@pytest.mark.parametrize("name", PRINTED)
def test_no_unprinted_value_is_marked_as_published(name: str) -> None:
    """If this failed, a reader would take a number of ours for one of the paper's."""
    origins = load_recipe(name).origins()
    assert set(origins.values()) == {"published", "derived", "ours"}
    assert load_recipe(name).provenance.paper
    assert {origins[key] for key in UNPRINTED} == {"ours"}
    assert not set(load_recipe(name).provenance.published) & set(load_recipe(name).provenance.derived)


def test_all_six_sets_are_shipped() -> None:
    """If this failed, a user with a public set's files would find no recipe for it."""
    assert {name for name in shipped_recipes() if name.startswith("lf_")} == set(PUBLIC_SETS)


@pytest.mark.parametrize("name", PUBLIC_SETS)
def test_a_batch_is_one_leaf_of_the_clustering(name: str) -> None:
    """If this failed, batches would not be the published ones: N halved `depth` times."""
    queries, depth = PUBLIC_SETS[name]
    assert load_recipe(name).batching.batch_size == -(-queries // 2**depth)


@pytest.mark.parametrize("name", PRINTED)
def test_scores_are_those_of_the_concatenated_vectors(name: str) -> None:
    """If this failed, a published system would be scored with a popularity bonus, which no paper uses."""
    recipe = load_recipe(name)
    assert recipe.validation.popularities == (0.0,) or recipe.weights == (0.0,)
    assert recipe.batching.label_queries.share == 0.0
