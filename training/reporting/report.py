"""Write report.html: one page about a finished run, made from its checkpoint folder.

The page is one self-contained file: its style and its charts are inside, and it has no script and no link. Query texts,
label texts and the dataset's name are untrusted; the template escapes them.

Shapes: Q validation queries, L labels, K ranks.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval.system.atomic_files import write_text
from training.checkpoint.opened import Checkpoint, load_checkpoint
from training.checkpoint.run_folder import REPORT
from training.checkpoint.schema import CheckpointFacts
from training.evaluation import slices
from training.evaluation.checkpoint_evaluation import checkpoint_data, checkpoint_heads, label_ranker, selected_mix
from training.evaluation.headline import (
    ALL_LABELS,
    HEAD_EXPLANATIONS,
    HEADLINE_METRICS,
    HEADS,
    KEY_METRICS,
    SEEN_LABELS,
    UNIFIED,
    metric_explanations,
    shown_heads,
    shown_metrics,
)
from training.evaluation.ranking import ExactRanker
from training.evaluation.results import EvaluationResult, MetricValues, evaluate
from training.evaluation.selection.select import list_ranker
from training.evaluation.slices import Example
from training.model.device import choose_device
from training.monitoring.console import TERMS, duration
from training.optim.step_stats import by_head_and_term
from training.pages.charts import line_chart
from training.pages.page import render as render_page
from training.recipe.loading import load_recipe
from training.recipe.schema import Recipe

ANSWERS_SHOWN = 5
TRUE_LABELS_SHOWN = 8
RANDOM_EXAMPLES, WORST_EXAMPLES = 6, 6
WEIGHTS = tuple(step / 10 for step in range(11))  # of the curve from the dual encoder to the classifier


@dataclass(frozen=True)
class ReportEvaluation:
    """Metrics and rankings of each head and of each classifier weight (named by `weight_name`), and unified scores."""

    result: EvaluationResult
    weights: Sequence[float]
    scores_QK: NDArray[np.float32]

    def metrics_by_weight(self) -> dict[float, MetricValues]:
        """Return the metrics at each classifier weight, in ascending order."""
        return {weight: self.result.metrics[weight_name(weight)] for weight in self.weights}


@dataclass(frozen=True)
class LabelGroupRow:
    """Labels of similar frequency: their number, the range of their training positives, and metrics by head."""

    name: str
    labels: int
    positives: str
    metrics: Mapping[str, MetricValues]


@dataclass(frozen=True)
class RecipeSetting:
    """One key of the recipe: its value, the value in the recipe `default`, and the origin of the value."""

    key: str
    value: str
    default: str
    origin: str

    @property
    def changed(self) -> bool:
        """Return whether the value differs from the default."""
        return self.value != self.default


def write_report(folder: Path, device: str = "auto") -> Path:
    """Write report.html into the checkpoint `folder`; encodes its labels and validation queries once.

    Raises CheckpointError if the folder has no finished run, RecipeError for the device.
    """
    opened = load_checkpoint(folder)
    page = folder / REPORT
    write_text(page, render(opened, evaluate_for_report(opened, choose_device(device))))
    return page


def evaluate_for_report(opened: Checkpoint, device: torch.device) -> ReportEvaluation:
    """Evaluate the validation queries at the selected mix, for each head, and at each weight of the curve.

    A cascade has neither other heads nor weights.
    """
    mix, data = selected_mix(opened), checkpoint_data(opened)
    heads = checkpoint_heads(opened, mix)
    weights = [] if opened.recipe.cascade is not None else sorted({*WEIGHTS, mix.weight})
    ends = {0.0: heads["dual_encoder"], 1.0: heads["classifier"]} if 0 < mix.weight < 1 else {}
    curve = {weight_name(weight): ends.get(weight, mix._replace(weight=weight)) for weight in weights}
    ranker = label_ranker(opened, data.queries, device)
    listed = list_ranker(ranker, mix, opened.cone_fraction) if isinstance(ranker, ExactRanker) else ranker
    result = evaluate(listed, data, heads | curve)
    return ReportEvaluation(result, weights, ranker.scores(result.rankings[UNIFIED], mix))


def weight_name(weight: float) -> str:
    """Return the name of the ranking at a classifier weight."""
    return f"weight {weight!r}"


def render(opened: Checkpoint, evaluation: ReportEvaluation) -> str:
    """Return the page as HTML."""
    facts, result = opened.facts, evaluation.result
    values = facts.best.metrics[UNIFIED]
    return render_page(
        "training.reporting", REPORT, duration=duration, gigabytes=lambda used: f"{used / 1e9:.1f} GB",
        facts=facts, best=facts.best, heads={head: HEADS[head] for head in _heads(facts)},
        shown_heads=shown_heads(facts.best.metrics),
        headline=shown_metrics(HEADLINE_METRICS, values),
        key_metrics=shown_metrics(KEY_METRICS, values), head_explanations=HEAD_EXPLANATIONS,
        metric_explanations=metric_explanations(values),
        selection_metrics=facts.recipe.validation.metrics,
        metric_charts=_metric_charts(facts), loss_chart=_loss_chart(facts), loss_terms=_loss_terms,
        weight_chart=_weight_chart(opened, evaluation), metrics_by_weight=evaluation.metrics_by_weight(),
        scopes=_scopes(result),
        random_examples=_examples(opened, evaluation, _random_rows(opened)),
        worst_examples=_examples(opened, evaluation, result.worst_queries(WORST_EXAMPLES)),
        answers_shown=ANSWERS_SHOWN, true_labels_shown=TRUE_LABELS_SHOWN,
        peak=max((record.stats for record in facts.history), key=lambda stats: stats.memory_bytes),
        settings=recipe_settings(facts.recipe), queries=len(opened.validation), positives_L=opened.positives_L,
    )  # fmt: skip


# ---- charts


def _loss_chart(facts: CheckpointFacts) -> str:
    curves = {"total": [(record.epoch, record.loss) for record in facts.history]}
    for name in by_head_and_term(facts.history[-1].stats.losses):
        curves[name] = [(r.epoch, by_head_and_term(r.stats.mean_losses).get(name, 0.0)) for r in facts.history]
    return line_chart("Loss, mean per step", curves, "epoch", mark=facts.best.epoch)


def _heads(facts: CheckpointFacts) -> list[str]:
    """Return the heads of the model: a cascade has only the unified one."""
    return [head for head in HEADS if head in facts.best.metrics]


def _metric_charts(facts: CheckpointFacts) -> dict[str, str]:
    heads = _heads(facts)
    return {
        metric: line_chart(
            metric,
            {head: [(record.epoch, record.metrics[head][metric]) for record in facts.history] for head in heads},
            "epoch",
            mark=facts.best.epoch,
        )
        for metric in facts.recipe.validation.metrics
    }


def _weight_chart(opened: Checkpoint, evaluation: ReportEvaluation) -> str:
    """Return the curve of the classifier weights; empty for a cascade, which has none."""
    if not evaluation.weights:
        return ""
    selected = opened.classifier_weight
    points = {weight: (of["PSP@5"], of["P@1"]) for weight, of in evaluation.metrics_by_weight().items()}
    names = {0.0: "0, dual encoder", 1.0: "1, classifier", selected: f"{selected:g}"}
    notes = {points[weight]: text for weight, text in names.items()}
    curves = {"unified": list(points.values()), "chosen": [points[selected]]}
    return line_chart("P@1 against PSP@5", curves, "PSP@5", notes=notes, integer_x=False)


# ---- slices of the validation queries


def _scopes(result: EvaluationResult) -> dict[str, dict[str, Any]]:
    """Return the groups of labels and queries, for all labels and among the seen ones."""
    results = {ALL_LABELS: result} | ({} if result.seen is None else {SEEN_LABELS: result.seen})
    return {name: {"labels": _label_groups(of), "queries": _query_groups(of)} for name, of in results.items()}


def _label_groups(result: EvaluationResult) -> dict[str, list[LabelGroupRow]]:
    """Return groups of labels by frequency ("labels") and, if the dataset has days, by age ("ages")."""
    data = result.data
    by_head = {head: result.group_ratios(head) for head in HEADS if head in result.rankings}
    return {
        kind: [
            LabelGroupRow(
                name,
                int(members[name].sum()),
                _range(data.positives_L[members[name]]),
                {head: slices.percent(groups[kind])[name] for head, groups in by_head.items()},
            )
            for name in by_head[UNIFIED][kind]
        ]
        for kind, members in data.label_groups.items()
    }


def _query_groups(result: EvaluationResult) -> dict[str, list[tuple[str, int, MetricValues]]]:
    """Return name, size and unified metrics of groups of queries by length ("queries") and by "history"."""
    ratios = result.group_ratios()
    return {
        kind: [(name, int(members[name].sum()), of) for name, of in slices.percent(ratios[kind]).items()]
        for kind, members in result.data.query_groups.items()
    }


def _range(counts: NDArray[np.int64]) -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


# ---- examples


def _random_rows(opened: Checkpoint) -> NDArray[np.int64]:
    """Draw query rows with the recipe's seed."""
    n = len(opened.validation)
    return np.sort(np.random.default_rng(opened.recipe.seed).choice(n, size=min(RANDOM_EXAMPLES, n), replace=False))


def _examples(opened: Checkpoint, evaluation: ReportEvaluation, rows: NDArray[np.int64]) -> list[Example]:
    texts = opened.labels["text"].to_pylist()
    return evaluation.result.examples(rows, texts, evaluation.scores_QK, ANSWERS_SHOWN)


# ---- settings


def recipe_settings(recipe: Recipe) -> list[RecipeSetting]:
    """Return every key of the recipe with its default and its origin (published, derived or ours)."""
    values, defaults = recipe.model_dump(), load_recipe("default").model_dump()
    return [
        RecipeSetting(key, _format(values, key), _format(defaults, key), origin)
        for key, origin in recipe.origins().items()
    ]


def _format(tree: Mapping[str, Any], key: str) -> str:
    try:
        value = reduce(lambda node, part: node[part], key.split("."), tree)
    except (KeyError, TypeError):  # of another kind of encoder, or of a section that is null
        return "—"
    if isinstance(value, tuple | list):
        return ", ".join(str(item) for item in value)
    return value if isinstance(value, str) else json.dumps(value)  # null and true, as in the recipe's file


def _loss_terms(parts: Mapping[str, float]) -> dict[str, tuple[str, float]]:
    """Return the description and the value of each `head/term`."""
    terms = {}
    for name, value in by_head_and_term(parts).items():
        head, term = name.split("/")
        terms[name] = (f"{HEADS[head]}, {TERMS[term]}", value)
    return terms
