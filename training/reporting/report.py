"""report.html: one page about a finished run, made from its checkpoint folder alone.

The page is one file that asks nobody for anything: its style stands inside, its curves are SVG. Texts of queries and
labels are data of strangers; the template escapes all of them.

Shapes: Q validation queries, L labels, K ranks.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray

from retrieval import metrics
from retrieval.system.atomic_files import write_text
from training.checkpoint.opened import Checkpoint, load_checkpoint
from training.checkpoint.schema import CheckpointFacts
from training.data.token_cache import tokenize_in_memory
from training.evaluation import scoring as evaluation
from training.evaluation import slices as analysis
from training.evaluation.scoring import HEADS
from training.evaluation.slices import Example
from training.model.device import choose_device
from training.monitoring.console import SHOWN, TERMS, duration
from training.optim.step_stats import by_head_and_term
from training.recipe.loading import load_recipe
from training.recipe.schema import Recipe
from training.reporting.charts import Chart, line_chart

REPORT = "report.html"
ANSWERS = 5  # of a query, beside its truth
TRUTHS = 8
DRAWN, WORST = 6, 6  # example queries
CHARACTERS = 160  # of a text; those of some datasets are pages long
FEW = ("P@1", "P@5", "R@10", "PSP@5")  # figures where all of them would not fit
WEIGHTS = tuple(step / 10 for step in range(11))  # between the halves, on the curve from precision to tail


@dataclass(frozen=True)
class Answers:
    """What the model answers to the validation queries: the best rows [Q, K] at each weight, and scores at its own."""

    ranking_QK: Mapping[float, NDArray[np.int64]]
    scores_QK: NDArray[np.float32]


@dataclass(frozen=True)
class Group:
    """Labels of about one frequency: how many, their training positives, and figures by head."""

    name: str
    labels: int
    positives: str
    figures: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Dial:
    """P@1 against PSP@5 as the weight moves from the dual encoder (0) to the classifier (1), and figures by weight."""

    chart: Chart
    metrics: tuple[str, ...]
    figures: Mapping[float, Mapping[str, float]]


@dataclass(frozen=True)
class Setting:
    """One key of the recipe; `default` is what the recipe `default` has, origin who chose the value."""

    key: str
    value: str
    default: str
    origin: str

    @property
    def changed(self) -> bool:
        """Whether it differs from the default."""
        return self.value != self.default


def write_report(folder: Path, device: str = "auto") -> Path:
    """Write report.html into the checkpoint `folder`; costs one encoding of its labels and validation queries.

    Raises CheckpointError for a folder that holds no finished run, RecipeError for the device.
    """
    opened = load_checkpoint(folder)
    page = folder / REPORT
    write_text(page, render(opened, answers(opened, choose_device(device))))
    return page


def answers(opened: Checkpoint, device: torch.device) -> Answers:
    """Rank every label for every validation query, at the model's weight and along the whole curve.

    The rankings at the model's weight and of each head alone are exact, as those that chose the epoch were.
    """
    model, blend = opened.model.to(device), evaluation.Blend(opened.classifier_weight, opened.popularity)
    texts = opened.labels["text"].to_pylist()
    queries = evaluation.encode_queries(model, tokenize_in_memory(opened.validation.texts, opened.tokenizer), device)
    label_tokens = tokenize_in_memory(texts, opened.tokenizer)
    labels = evaluation.encode_labels(model, label_tokens, opened.positives_L, device, opened.cone_fraction)
    blends = {weight: blend._replace(weight=weight) for weight in sorted({*WEIGHTS, blend.weight})}
    exact = [*evaluation.SEARCHED, *evaluation.by_head(blend).values()]
    found = evaluation.rank(queries, labels, list(blends.values()), opened.validation.exclude, searched=exact)
    ranking_QK = {weight: found[at] for weight, at in blends.items()}
    return Answers(ranking_QK, evaluation.scores(queries, labels, found[blend], blend))


def render(opened: Checkpoint, found: Answers) -> str:
    """The page as text."""
    facts = opened.facts
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"cut": _cut, "duration": duration, "gigabytes": lambda used: f"{used / 1e9:.1f} GB"}
    template = environment.from_string((files("training.reporting") / "templates" / REPORT).read_text(encoding="utf-8"))
    drawn, worst = _example_rows(opened, found)
    return template.render(
        facts=facts, best=facts.best, heads=HEADS, shown=SHOWN, chosen_by=facts.recipe.validation.metrics,
        figure_charts=_figure_charts(facts), loss_chart=_loss_chart(facts), named_parts=_named_parts,
        dial=_dial(opened, found),
        groups=_frequency_groups(opened, found), lengths=_lengths(opened, found), length_figures=FEW,
        drawn=_examples(opened, found, drawn), worst=_examples(opened, found, worst),
        shown_answers=ANSWERS, truths=TRUTHS, most=max((r.stats for r in facts.history), key=lambda t: t.memory_bytes),
        settings=settings(facts.recipe), queries=len(opened.validation), positives_L=opened.positives_L,
    )  # fmt: skip


# ---- curves


def _loss_chart(facts: CheckpointFacts) -> Chart:
    curves = {"total": [(r.epoch, r.loss) for r in facts.history]}
    for name in by_head_and_term(facts.history[-1].stats.losses):
        curves[name] = [(r.epoch, by_head_and_term(r.stats.mean_losses).get(name, 0.0)) for r in facts.history]
    return line_chart("Loss by part, mean of a step", curves, "epoch", mark=facts.best.epoch)


def _figure_charts(facts: CheckpointFacts) -> list[Chart]:
    return [
        line_chart(
            metric,
            {head: [(r.epoch, r.metrics[head][metric]) for r in facts.history] for head in HEADS},
            "epoch",
            mark=facts.best.epoch,
        )
        for metric in facts.recipe.validation.metrics
    ]


def _dial(opened: Checkpoint, found: Answers) -> Dial:
    weights = sorted({*WEIGHTS, opened.classifier_weight})
    truth = [opened.validation.labels[row] for row in range(len(opened.validation))]
    figures = {
        weight: metrics.evaluate(found.ranking_QK[weight], truth, opened.inverse_propensity_L) for weight in weights
    }
    at = {weight: (of["PSP@5"], of["P@1"]) for weight, of in figures.items()}
    named = {0.0: "0, dual encoder", 1.0: "1, classifier", opened.classifier_weight: f"{opened.classifier_weight:g}"}
    curves = {"unified": list(at.values()), "chosen": [at[opened.classifier_weight]]}
    notes = {at[weight]: text for weight, text in named.items()}
    drawn = line_chart("P@1 against PSP@5, by classifier weight", curves, "PSP@5", notes=notes, whole_x=False)
    return Dial(drawn, FEW, figures)


# ---- parts of the validation queries


def _frequency_groups(opened: Checkpoint, found: Answers) -> list[Group]:
    """Head, torso, tail and unseen labels."""
    members = analysis.frequency_groups(opened.positives_L)
    weights = {"unified": opened.classifier_weight, "dual_encoder": 0.0, "classifier": 1.0}
    by_head = {
        head: analysis.by_label_frequency(found.ranking_QK[weight], opened.validation.labels, members)
        for head, weight in weights.items()
    }
    return [
        Group(
            name,
            int(members[name].sum()),
            _range(opened.positives_L[members[name]]),
            {head: groups[name] for head, groups in by_head.items()},
        )
        for name in by_head["unified"]
    ]


def _lengths(opened: Checkpoint, found: Answers) -> list[tuple[str, int, Mapping[str, float]]]:
    """Name, number of queries and figures of the unified model, by the queries' words."""
    asked = opened.validation
    figures = analysis.by_query_length(
        found.ranking_QK[opened.classifier_weight], asked.labels, asked.texts, opened.inverse_propensity_L
    )
    members = analysis.length_groups(asked.texts)
    return [(name, int(members[name].sum()), of) for name, of in figures.items()]


def _range(counts: NDArray[np.int64]) -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


# ---- examples


def _example_rows(opened: Checkpoint, found: Answers) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Query rows drawn at random, the same ones each time, and the worst ones."""
    n = len(opened.validation)
    drawn = np.sort(np.random.default_rng(opened.recipe.seed).choice(n, size=min(DRAWN, n), replace=False))
    top_QK = found.ranking_QK[opened.classifier_weight]
    return drawn, analysis.worst_queries(top_QK, opened.validation.labels, WORST)


def _examples(opened: Checkpoint, found: Answers, rows: Iterable[int]) -> list[Example]:
    asked, texts = opened.validation, opened.labels["text"].to_pylist()
    counts_L = opened.positives_L
    top_QK = found.ranking_QK[opened.classifier_weight][:, :ANSWERS]
    return [
        analysis.example(asked.texts[row], top_QK[row], asked.labels[row], texts, counts_L, found.scores_QK[row])
        for row in map(int, rows)
    ]


def _cut(text: str) -> str:
    return text if len(text) <= CHARACTERS else f"{text[: CHARACTERS - 1]}…"


# ---- settings


def settings(recipe: Recipe) -> list[Setting]:
    """Every key of the recipe beside the default's value, with its origin (published, derived or ours)."""
    own, default = recipe.model_dump(), load_recipe("default").model_dump()
    return [Setting(key, _shown(own, key), _shown(default, key), origin) for key, origin in recipe.origins().items()]


def _shown(tree: Mapping[str, Any], key: str) -> str:
    try:
        value = reduce(lambda node, part: node[part], key.split("."), tree)
    except KeyError:  # of another kind of encoder
        return "—"
    if isinstance(value, tuple | list):
        return ", ".join(str(item) for item in value)
    return value if isinstance(value, str) else json.dumps(value)  # null and true, as in the recipe's file


def _named_parts(parts: Mapping[str, float]) -> dict[str, tuple[str, float]]:
    """Style, words and value of each `head/term`."""
    named = {}
    for name, value in by_head_and_term(parts).items():
        head, term = name.split("/")
        named[name] = (f"{HEADS[head]}, {TERMS[term]}", value)
    return named
