"""The recipe: every setting of a training run, immutable and validated.

Recipes are YAML files; `training/recipes/` has the shipped ones. A key that a file leaves out has the default written
here, which makes the recipe `default`. An unknown key is an error.
"""

import json
from collections.abc import Iterator, Mapping
from functools import reduce
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from training.recipe.sections import (
    BatchingRecipe,
    CascadeRecipe,
    ClicksRecipe,
    Count,
    EncoderRecipe,
    HeadsRecipe,
    LossesRecipe,
    MemoryRecipe,
    OptimizerRecipe,
    PropensityRecipe,
    ProvenanceRecipe,
    Section,
    StaticEncoderRecipe,
    ValidationRecipe,
)

Objective = Literal["precision", "balanced", "tail"]

# Defaults of each objective; what a recipe sets itself has precedence. docs/decisions/0011
OBJECTIVES: dict[str, dict[str, Any]] = {
    "precision": {"validation": {"metrics": ["P@1", "P@5"]}},
    "balanced": {},
    "tail": {"validation": {"metrics": ["PSP@1", "PSP@5"]}, "loss": {"classifier": {"bce": 0.02}}},
}

# What a recipe with a cascade must set, by dotted key.
WITHOUT_CASCADE: dict[str, Any] = {
    "warm_start": None,
    "loss.dual_encoder_share": 0.0,
    "heads.label_rows": "free",
    "batching.clustered": False,
    "batching.hard_negatives": 0,
    "batching.label_queries.share": 0.0,
    "clicks.sampling": 0.0,
    "clicks.loss": 0.0,
    "clicks.exposed_negatives": 0,
    "validation.popularities": (0.0,),
    "memory.max_queries": 0,
}


class Recipe(Section):
    """All settings that affect the weights: the same recipe and dataset give the same weights.

    `objective` trades precision against the tail. `precision` selects epoch, classifier weight and popularity bonus by
    P@1 and P@5, which favours the classifier and popular labels. `tail` selects them by PSP@1 and PSP@5 and reduces the
    weight of BCE, which teaches the classifier popularity. `balanced` is between the two.
    """

    name: str
    description: str = ""
    objective: Objective = "balanced"
    warm_start: str | None = Field(default=None, description="checkpoint that provides the initial encoder and heads")
    encoder: EncoderRecipe = StaticEncoderRecipe()
    heads: HeadsRecipe = HeadsRecipe()
    cascade: CascadeRecipe | None = Field(default=None, description="CascadeXML instead of a dual encoder; null: none")
    batching: BatchingRecipe = BatchingRecipe()
    clicks: ClicksRecipe = ClicksRecipe()
    loss: LossesRecipe = LossesRecipe()
    optimizer: OptimizerRecipe = OptimizerRecipe()
    validation: ValidationRecipe = ValidationRecipe()
    memory: MemoryRecipe = MemoryRecipe()
    propensity: PropensityRecipe = PropensityRecipe()
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    checkpoint_minutes: Annotated[float, Field(gt=0.0)] = 10.0
    seed: Count = 0
    provenance: ProvenanceRecipe = ProvenanceRecipe()

    @model_validator(mode="before")
    @classmethod
    def _encoder_without_a_kind_is_static(cls, data: Any) -> Any:
        encoder = data.get("encoder") if isinstance(data, dict) else None
        if isinstance(encoder, dict) and "kind" not in encoder:
            return {**data, "encoder": {"kind": "transformer" if "model" in encoder else "static", **encoder}}
        return data

    @model_validator(mode="before")
    @classmethod
    def _objective_sets_defaults(cls, data: Any) -> Any:
        objective = data.get("objective") if isinstance(data, dict) else None
        return _with_defaults(OBJECTIVES.get(str(objective), {}), data)

    @model_validator(mode="after")
    def _cascade_has_no_other_parts(self) -> "Recipe":
        """A cascade has no dual encoder, memory, label queries, mined negatives, popularity or click weights."""
        if self.cascade is None:
            return self
        if self.encoder.kind != "transformer":
            raise ValueError("cascade needs a transformer, whose layers it reads: set encoder.model")
        for key, value in WITHOUT_CASCADE.items():
            if reduce(getattr, key.split("."), self) != value:
                written = json.dumps(value)
                raise ValueError(f"cascade excludes {key}: set {key} to {written}, or cascade to null")
        phases = self.cascade.warmup_epochs + self.cascade.final_epochs
        if phases > self.optimizer.epochs:
            raise ValueError(
                f"cascade.warmup_epochs and cascade.final_epochs add up to {phases:g}: "
                f"give at most optimizer.epochs, {self.optimizer.epochs}"
            )
        return self

    @model_validator(mode="after")
    def _provenance_names_real_keys(self) -> "Recipe":
        known = set(self._dotted_keys())
        for key in (*self.provenance.published, *self.provenance.derived):
            if key not in known:
                raise ValueError(f"provenance names '{key}', which is not a key of the recipe")
        return self

    def _dotted_keys(self) -> list[str]:
        return list(_dotted(self.model_dump(exclude={"name", "description", "provenance"})))

    def origins(self) -> dict[str, str]:
        """Return the origin of the value of every dotted key: `published`, `derived` or `ours`."""
        keys = self._dotted_keys()
        published, derived = set(self.provenance.published), set(self.provenance.derived)
        return {key: "published" if key in published else "derived" if key in derived else "ours" for key in keys}

    @property
    def has_classifier(self) -> bool:
        """Whether the classifier is trained; without it, its head and ψ are not allocated."""
        return self.loss.dual_encoder_share < 1.0

    @property
    def rows_from_text(self) -> bool:
        """Whether ψ is g2 of the label's text plus a residual."""
        return self.has_classifier and self.heads.label_rows == "text"

    @property
    def fixed_weight(self) -> float | None:
        """The fixed classifier weight; None if it is selected, or if only one head is trained."""
        return self.validation.fixed_weight if 0.0 < self.loss.dual_encoder_share < 1.0 else None

    @property
    def weights(self) -> tuple[float, ...]:
        """Candidate classifier weights; if only one head is trained, only its weight."""
        match self.loss.dual_encoder_share:
            case 1.0:
                return (0.0,)
            case 0.0:
                return (1.0,)
            case _:
                return self.validation.weights

    def differences(self, other: "Recipe") -> list[str]:
        """Describe each key whose value differs as `key: this → other`, except keys that do not affect the weights."""
        ignored = {"name", "description", "provenance", "checkpoint_minutes"}
        mine, theirs = _dotted(self.model_dump(exclude=ignored)), _dotted(other.model_dump(exclude=ignored))
        keys = sorted(mine.keys() | theirs.keys())
        return [f"{k}: {mine.get(k)} → {theirs.get(k)}" for k in keys if mine.get(k) != theirs.get(k)]


def _with_defaults(defaults: Mapping[str, Any], values: Any) -> Any:
    """Return `values` with missing keys taken from `defaults`, section by section."""
    if not isinstance(values, Mapping):
        return values
    merged = {
        key: _with_defaults(defaults[key], value) if isinstance(defaults.get(key), Mapping) else value
        for key, value in values.items()
    }
    return {**defaults, **merged}


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    return dict(_walk(tree, prefix))


def _walk(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _walk(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
