"""The recipe: every choice of a training run, frozen, validated once, overridable by dotted keys.

A recipe is data: the files beside this module in `recipes/` are the published runs and our presets, one file each. A
key that a file leaves out has the default written here, which is the recipe `default`; a key that does not exist is an
error.
"""

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from retrieval.errors import RecipeError

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0.0, le=10.0)]
Weight = Annotated[float, Field(ge=0.0)]
Temperature = Annotated[float, Field(ge=1e-3, le=1e3)]


class Section(BaseModel):
    """Base of every part of a recipe: immutable, and a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class StaticEncoderRecipe(Section):
    """A learned vector and weight a token, learned vectors of pairs and of spelling; see model/static_encoder.py.

    The tokenizer is learned from the dataset's own texts, or comes with the token vectors of the transformer that
    `start_from` names.
    """

    kind: Literal["static"] = "static"
    dim: Positive = 256
    vocabulary_size: Annotated[int, Field(ge=64)] = 30_000
    spelling_rows: Count = Field(default=50_000, description="runs of letters that tokens share, at most; 0: none")
    pair_rows: Count = Field(
        default=50_000, description="rows that pairs of neighbouring tokens share by hash; 0: none"
    )
    pair_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.5, description="share of training texts that go without their pairs"
    )
    start_from: str | None = None
    max_tokens: Positive = 64


class TransformerEncoderRecipe(Section):
    """Any Hugging Face encoder by name or folder, mean-pooled over its tokens; `layers` keeps only the first few."""

    kind: Literal["transformer"] = "transformer"
    model: str
    layers: Positive | None = None
    max_tokens: Positive = 32


EncoderRecipe = Annotated[StaticEncoderRecipe | TransformerEncoderRecipe, Field(discriminator="kind")]


class HeadRecipe(Section):
    """One head (g1 or g2): its output width (the encoder's own when null) and its dropout."""

    dim: Positive | None = None
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0


class HeadsRecipe(Section):
    """g1 (dual encoder) and g2 (classifier)."""

    dual_encoder: HeadRecipe = HeadRecipe()
    classifier: HeadRecipe = HeadRecipe()


class LabelQueriesRecipe(Section):
    """Label texts as extra queries; their positives are labels that share training queries with them (Gandalf).

    What `targets` may be stands in `training.batching.label_queries`.
    """

    share: Annotated[float, Field(ge=0.0)] | None = Field(
        default=None,
        description="in an epoch, a training query; null: the share of queries that are label texts, "
        "where those are most of them, else 0",
    )
    targets: Literal["neighbours", "gandalf", "glas", "one_hot"] = "neighbours"
    most: Positive = Field(default=30, description="positives of a label query")
    threshold: Share = Field(default=0.1, description="least cosine of two labels' sets of queries, or least target")


class BatchingRecipe(Section):
    """Which queries share a batch and which labels share its pool (Algorithm 1's inner lines)."""

    batch_size: Annotated[int, Field(ge=2)] = 512
    clustered: bool = Field(default=False, description="queries that are alike share a batch; else chance decides")
    positives: Positive = Field(default=5, description="β: positives sampled a query, without replacement")
    hard_negatives: Count = Field(default=1, description="η: mined negatives drawn a query and epoch")
    refresh_epochs: Positive = Field(
        default=3, description="τ of the paper: epochs between two minings and clusterings"
    )
    pool_size: Positive | Literal["all"] = Field(
        default=4000, description="most labels a batch is compared with; all: the whole label space, in every step"
    )
    texts_at_once: Positive | None = Field(
        default=None, description="texts of a step held in memory while learning, each encoded twice; null: all of them"
    )
    label_queries: LabelQueriesRecipe = LabelQueriesRecipe()


class LossRecipe(Section):
    """One head's loss: a weighted sum of terms on scores divided by `temperature`.

    `positives` says over which pairs a term's mean is taken: `all` of a query's positives in the pool (PSL), or the
    `one` drawn for it (POL); the binary loss always sees all. `query_to_label` is λ_D (λ_C): the share of the
    query→label direction; the rest goes to label→query.
    """

    decoupled_softmax: Weight = 1.0
    supcon: Weight = 0.0
    triplet: Weight = Field(default=0.0, description="mean over the negatives within `margin` of the positive")
    bce: Weight = Field(default=0.0, description="on the sum over the pool, a query")
    positives: Literal["all", "one"] = "all"
    margin: Weight = 0.3
    temperature: Temperature = 1.0
    query_to_label: Share = 0.5

    @model_validator(mode="after")
    def _has_a_term(self) -> "LossRecipe":
        if self.decoupled_softmax + self.supcon + self.triplet + self.bce == 0:
            raise ValueError("all of decoupled_softmax, supcon, triplet and bce are 0: give one of them a weight")
        return self


class DualEncoderLossRecipe(LossRecipe):
    """The dual encoder's loss, on cosines."""

    temperature: Temperature = 0.07


class ClassifierLossRecipe(LossRecipe):
    """The classifier's loss, on inner products that are not normalised; the BCE term lets it learn popularity."""

    bce: Weight = 0.05


class LossesRecipe(Section):
    """L = λ·L_D + (1−λ)·L_C; `dual_encoder_share` is λ."""

    dual_encoder_share: Share = 0.5
    dual_encoder: DualEncoderLossRecipe = DualEncoderLossRecipe()
    classifier: ClassifierLossRecipe = ClassifierLossRecipe()


class OptimizerRecipe(Section):
    """AdamW for what every batch touches, the row-wise optimiser for ψ and the static token table."""

    epochs: Positive = 30
    encoder_lr: Rate = Field(default=1e-4, description="transformer layers; AdamW")
    heads_lr: Rate = Field(default=1e-3, description="g1 and g2; AdamW")
    classifier_lr: Rate = Field(default=1e-1, description="rows of ψ; row-wise")
    token_lr: Rate = Field(default=1e-2, description="rows of the static token table; row-wise")
    classifier_rows: Literal["float32", "bfloat16"] = Field(
        default="float32", description="how ψ stands in memory; bfloat16 halves it and is rounded at random"
    )
    weight_decay: Weight = 0.01
    warmup: Share = Field(default=0.05, description="share of all steps in which the rate rises to its peak")
    clip_norm: Annotated[float, Field(gt=0.0)] = Field(default=1.0, description="for the AdamW part")


Metric = Annotated[str, Field(pattern=r"^(P|nDCG|PSP|R|C)@(1|3|5|10)$")]


class ValidationRecipe(Section):
    """What chooses the best epoch, the weight between the halves and the worth of popularity: the mean of `metrics`."""

    metrics: Annotated[tuple[Metric, ...], Field(min_length=1)] = ("P@1", "P@5", "R@10", "PSP@5")
    every_epochs: Positive = 5
    max_queries: Positive = 2000
    weights: Annotated[tuple[Share, ...], Field(min_length=1)] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    popularities: Annotated[tuple[Share, ...], Field(min_length=1)] = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)


class PropensityRecipe(Section):
    """Constants of the propensity model behind PSP@k (Jain et al. 2016)."""

    a: Annotated[float, Field(gt=0.0, le=5.0)] = 0.55
    b: Annotated[float, Field(gt=0.0, le=100.0)] = 1.5


class ProvenanceRecipe(Section):
    """Dotted keys that a paper prints, and those that follow from what it prints; every other key is ours."""

    paper: str = ""
    published: tuple[str, ...] = ()
    derived: tuple[str, ...] = ()


Objective = Literal["precision", "balanced", "tail"]

# The dial: three points between the labels that are mostly right and those that are rarely seen. Each is what stands
# here, laid under what a recipe says itself; figures in docs/decisions/0011.
OBJECTIVES: dict[str, dict[str, Any]] = {
    "precision": {"validation": {"metrics": ["P@1", "P@5"]}},
    "balanced": {},
    "tail": {"validation": {"metrics": ["PSP@1", "PSP@5"]}, "loss": {"classifier": {"bce": 0.02}}},
}


class Recipe(Section):
    """Everything that decides what a run learns. Two runs with one recipe and one dataset end with the same weights.

    `objective` chooses a point between precision and tail. `precision` chooses epoch, weight and popularity by P@1 and
    P@5, so that the classifier and often chosen labels count for more; `tail` chooses them by PSP@1 and PSP@5 and gives
    the binary loss, by which the classifier learns popularity, less than half its weight; `balanced` stands between.
    """

    name: str
    description: str = ""
    objective: Objective = "balanced"
    warm_start: str | None = Field(default=None, description="a checkpoint whose encoder and heads the run begins with")
    encoder: EncoderRecipe = StaticEncoderRecipe()
    heads: HeadsRecipe = HeadsRecipe()
    batching: BatchingRecipe = BatchingRecipe()
    loss: LossesRecipe = LossesRecipe()
    optimizer: OptimizerRecipe = OptimizerRecipe()
    validation: ValidationRecipe = ValidationRecipe()
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
    def _objective_fills_what_is_not_said(cls, data: Any) -> Any:
        objective = data.get("objective") if isinstance(data, dict) else None
        return _laid_under(OBJECTIVES.get(str(objective), {}), data)

    @model_validator(mode="after")
    def _provenance_names_real_keys(self) -> "Recipe":
        known = set(self.origins(marked=False))
        for key in (*self.provenance.published, *self.provenance.derived):
            if key not in known:
                raise ValueError(f"provenance names '{key}', which is no key of the recipe")
        return self

    def origins(self, *, marked: bool = True) -> dict[str, str]:
        """Every dotted key and where its value comes from: `published`, `derived` or `ours`."""
        keys = _dotted(self.model_dump(exclude={"name", "description", "provenance"}))
        if not marked:
            return dict.fromkeys(keys, "ours")
        published, derived = set(self.provenance.published), set(self.provenance.derived)
        return {key: "published" if key in published else "derived" if key in derived else "ours" for key in keys}

    @property
    def weights(self) -> tuple[float, ...]:
        """Weights of the classifier to choose among: with one head learned, its own alone."""
        match self.loss.dual_encoder_share:
            case 1.0:
                return (0.0,)
            case 0.0:
                return (1.0,)
            case _:
                return self.validation.weights

    def differences(self, other: "Recipe") -> list[str]:
        """One phrase for each key whose value differs, `key: here → there`; what decides no weight is left out."""
        kept = {"name", "description", "provenance", "checkpoint_minutes"}
        mine, theirs = _dotted(self.model_dump(exclude=kept)), _dotted(other.model_dump(exclude=kept))
        keys = sorted(mine.keys() | theirs.keys())
        return [f"{k}: {mine.get(k)} → {theirs.get(k)}" for k in keys if mine.get(k) != theirs.get(k)]


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a shipped recipe by name or a YAML file by path, with `dotted.key=value` overrides laid over it.

    Raises RecipeError naming the key, the value and what was expected.
    """
    data = _read(name_or_path)
    for override in overrides:
        _lay_over(data, override)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"recipe '{name_or_path}': {_sentence(error)}") from error


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = files("training") / "recipes"
    found = [("", item) for item in folder.iterdir()] + [("systems/", item) for item in (folder / "systems").iterdir()]
    return sorted(room + item.name.removesuffix(".yaml") for room, item in found if item.name.endswith(".yaml"))


def _read(name_or_path: str) -> dict[str, Any]:
    if name_or_path in shipped_recipes():
        text = (files("training") / "recipes" / f"{name_or_path}.yaml").read_text(encoding="utf-8")
    elif Path(name_or_path).is_file():
        text = _text(Path(name_or_path))
    else:
        known = ", ".join(shipped_recipes())
        raise RecipeError(f"recipe '{name_or_path}' is neither a shipped recipe ({known}) nor a file")
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe '{name_or_path}' is not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise RecipeError(f"recipe '{name_or_path}' holds {type(data).__name__}, expected a mapping of keys")
    return data


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"recipe '{path}' is no text file ({error.reason})") from error


def _lay_over(data: dict[str, Any], override: str) -> None:
    key, equals, raw = override.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"override '{override}' has no form key=value, for example batching.batch_size=512")
    try:
        value = yaml.safe_load(raw)
    except yaml.YAMLError as error:
        raise RecipeError(f"override '{override}': '{raw}' is not a YAML value: {error}") from error
    # YAML 1.1 reads 1e-3 as a string; a person who writes it means the number.
    if isinstance(value, str):
        value = _number(value)
    *parents, last = key.strip().split(".")
    node = data
    for parent in parents:
        if node.get(parent) is None:
            node[parent] = {}
        node = node[parent]
        if not isinstance(node, dict):
            raise RecipeError(f"override '{override}': '{parent}' is a value, not a section")
    node[last] = value


def _laid_under(base: Mapping[str, Any], over: Any) -> Any:
    """`over` with what it leaves out taken from `base`, section by section."""
    if not isinstance(over, Mapping):
        return over
    return {
        **base,
        **{key: _laid_under(base[key], of) if isinstance(base.get(key), Mapping) else of for key, of in over.items()},
    }


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("static", "transformer")) or "the whole"
    if first["type"] == "extra_forbidden":
        return f"'{where}' is no key of a recipe (value {first['input']!r})"
    given = "" if isinstance(first["input"], dict) else f" (given {first['input']!r})"
    more = f"; {error.error_count() - 1} more like this" if error.error_count() > 1 else ""
    return f"'{where}': {first['msg'].removeprefix('Value error, ')}{given}{more}"


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    return dict(_walk(tree, prefix))


def _walk(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _walk(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
