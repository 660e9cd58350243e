"""Print the output of `diptych evaluate`, at most 80 columns wide."""

from collections.abc import Iterator, Mapping, Sequence

from rich import box
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from retrieval.system.console import Console
from training.evaluation.headline import (
    HEAD_EXPLANATIONS,
    HEADS,
    SEEN_LABELS,
    TUNED,
    UNIFIED,
    metric_explanations,
    shown_heads,
)
from training.evaluation.results import SEEN, SliceMetric
from training.evaluation.scoring import ScoreMix
from training.evaluation.significance import ALPHA, Contrast, Estimate
from training.evaluation.slices import Answer
from training.evaluation.summary import (
    METRICS_BY_KIND,
    EvaluationComparison,
    EvaluationSummary,
    LabelGroup,
    QueryGroup,
    ScopeSummary,
    Subject,
)

TRUE_LABELS_SHOWN = 8
ANSWERS_SHOWN = 5
HEADLINE_COLUMNS = {"dual_encoder": "dual encoder only", "classifier": "classifier only", TUNED: "tuned weight"}
EXAMPLE_LEGEND = "(✓ true label, ×n training positives, score in parentheses)"


def show(summary: EvaluationSummary | EvaluationComparison) -> None:
    """Print the evaluation of one checkpoint, or the comparison of two."""
    console = Console(highlight=False, markup=False)
    console.print(_title(summary.subject))
    if isinstance(summary, EvaluationSummary):
        _show_summary(console, summary)
    else:
        _show_comparison(console, summary)


def _show_summary(console: Console, summary: EvaluationSummary) -> None:
    """Print the metrics for all labels, then among the seen ones, and the worst queries."""
    tuned = "" if summary.tuned is None else f"; tuned: {_mix(summary.tuned)}"
    console.print(f"{summary.checkpoint}\n{_mix(summary.mix)}{tuned}", soft_wrap=True)
    _show_scope(console, summary)
    if summary.seen is not None:
        unseen = 1 - summary.seen.true_labels / summary.true_labels
        console.print(Text(f"\n{SEEN_LABELS.capitalize()}", style="bold"))
        console.print(
            f"Rankings and true labels without labels that have no training positive ({unseen:.1%} of the true labels)."
        )
        _show_scope(console, summary.seen)
    console.print(
        f"Percent. ±: half of the 95 % bootstrap interval ({_resamples(summary.subject)}).\n"
        "In parentheses: unified minus that head, paired. C@10 has no interval.\n"
        "P@5 of a label group counts only hits in the group; the groups add up to P@5."
    )
    console.print(
        _legend(HEAD_EXPLANATIONS, shown_heads(summary.metrics)),
        _legend(metric_explanations(summary.metrics[UNIFIED])),
        _constants(summary.subject),
    )
    if summary.worst:
        console.print(f"\nWorst queries {EXAMPLE_LEGEND}:")
    for number, example in enumerate(summary.worst, 1):
        _print_query(console, number, example.query, example.truth, {"answers": example.answers})


def _show_scope(console: Console, scope: ScopeSummary) -> None:
    """Print headline metrics, and metrics by group of labels and queries."""
    console.print(_headline_table(scope), _label_table("labels (training positives)", scope.label_frequency))
    if scope.label_age:
        console.print(_label_table("age of labels (training positives)", scope.label_age))
    console.print(_query_table("query length", scope.query_length))
    if scope.query_history:
        console.print(_query_table("query in training", scope.query_history))


def _show_comparison(console: Console, comparison: EvaluationComparison) -> None:
    """Print every slice with its test, the queries on which each checkpoint is worse, and the verdict."""
    for side, checkpoint, mix in zip("AB", comparison.checkpoints, comparison.mixes, strict=True):
        console.print(f"{side}  {checkpoint}, {_mix(mix)}", soft_wrap=True)
    console.print(_contrast_table(comparison.contrasts))
    console.print(
        f"Percent. P@5 of a label group counts only hits in the group. Intervals: paired\n"
        f"bootstrap, not corrected. p: paired permutation test, corrected for\n"
        f"{len(comparison.contrasts)} tests (maxT); better: p < {ALPHA:g}. Each with "
        f"{_resamples(comparison.subject)}.\n{_constants(comparison.subject)}"
    )
    for side, other, pairs in (("A", "B", comparison.first_behind), ("B", "A", comparison.second_behind)):
        if pairs:
            console.print(
                f"\nQueries on which {side} finds fewest true labels compared with {other}\n{EXAMPLE_LEGEND}:"
            )
        for number, (first, second) in enumerate(pairs, 1):
            _print_query(console, number, first.query, first.truth, {"A": first.answers, "B": second.answers})
    console.print()
    for line in _verdict(comparison.contrasts):
        console.print(line)


def _title(subject: Subject) -> Text:
    return Text(f"{subject.dataset}, {subject.split} split: {subject.queries:,} queries with true labels", style="bold")


def _mix(mix: ScoreMix) -> str:
    votes = mix.memory
    memory = f", memory {votes.weight:g} (τ {votes.temperature:g}, N {votes.neighbours})"
    return f"classifier weight {mix.weight:g}, popularity bonus {mix.popularity:g}" + (memory if votes.weight else "")


def _constants(subject: Subject) -> str:
    return f"Propensities of PSP@k: A={subject.propensity['a']:g}, B={subject.propensity['b']:g}."


def _resamples(subject: Subject) -> str:
    return f"{subject.resamples:,} resamples, seed {subject.seed}"


def _legend(explanations: dict[str, str], names: dict[str, str] | None = None) -> Padding:
    """List terms with their explanations; `names` are the terms as readers know them."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    for key, explanation in explanations.items():
        if names is None or key in names:
            grid.add_row(names[key] if names else key, explanation)
    return Padding(grid, (1, 0, 0, 0))


def _headline_table(summary: ScopeSummary) -> Table:
    table = _table("", "unified", *(HEADLINE_COLUMNS[head] for head in summary.unified_minus))
    for metric in summary.estimates[UNIFIED]:
        cells = [_margin(summary.estimates[UNIFIED][metric], 2)]
        for head, differences in summary.unified_minus.items():
            cells.append(f"{summary.metrics[head][metric]:.2f}  ({_margin(differences[metric], 1, '+')})")
        table.add_row(metric, *cells)
    table.add_row("C@10", *(f"{summary.metrics[head]['C@10']:.2f}" for head in summary.metrics))
    return table


def _label_table(title: str, groups: Mapping[str, LabelGroup]) -> Table:
    shown = METRICS_BY_KIND["labels"]
    table = _table(title, "number", "true labels", *shown)
    for name, group in groups.items():
        low, high = group.min_positives, group.max_positives
        counts = f"{low:,}" if low == high else f"{low:,}–{high:,}"
        values = (_margin(group.estimates[metric], 1) for metric in shown)
        table.add_row(f"{name} ({counts})", f"{group.labels:,}", f"{group.true_labels:,}", *values)
    return table


def _query_table(title: str, groups: Mapping[str, QueryGroup]) -> Table:
    shown = list(next(iter(groups.values())).estimates)
    table = _table(title, "queries", *shown)
    for name, group in groups.items():
        values = (_margin(group.estimates[metric], 1) for metric in shown)
        table.add_row(name, f"{group.queries:,}", *values)
    return table


def _contrast_table(contrasts: Sequence[Contrast[SliceMetric]]) -> Table:
    table = _table("", "", "A", "B", "A − B", "95 % interval", "p", "better")
    previous = SliceMetric("", "", "")
    for contrast in contrasts:
        if previous.kind not in ("", contrast.key.kind):
            table.add_section()
        name = "" if previous[:2] == contrast.key[:2] else _name(contrast.key)
        if name and contrast.key.kind == "queries":
            name += f" ({contrast.queries:,})"
        previous = contrast.key
        low, high = contrast.difference.low, contrast.difference.high
        table.add_row(
            name,
            contrast.key.metric,
            f"{contrast.first:.1f}",
            f"{contrast.second:.1f}",
            f"{contrast.difference.value:+z.1f}",
            "" if low is None or high is None else f"{low:+z.1f} … {high:+z.1f}",
            f"{contrast.p_corrected:.3f}" if contrast.p_corrected >= 0.001 else "<0.001",
            {"first": "A", "second": "B", None: ""}[contrast.better],
        )
    return table


def _verdict(contrasts: Sequence[Contrast[SliceMetric]]) -> Iterator[Text]:
    """Yield a sentence for each side that is better on a slice, and the number of tests without a difference."""
    for side, key in (("A", "first"), ("B", "second")):
        better: dict[str, list[str]] = {}
        for contrast in contrasts:
            if contrast.better == key:
                better.setdefault(_name(contrast.key), []).append(contrast.key.metric)
        if better:
            slices = "; ".join(f"{name} {', '.join(metrics)}" for name, metrics in better.items())
            yield Text(f"{side} is better on: {slices}.")
    undecided = sum(contrast.better is None for contrast in contrasts)
    if undecided:
        yield Text(f"{undecided} of {len(contrasts)} tests show no difference.")


def _print_query(
    console: Console, number: int, query: str, truth: Sequence[Answer], answers: dict[str, tuple[Answer, ...]]
) -> None:
    """Print the query, its true labels, and each model's answers below them."""
    grid = Table.grid(padding=(0, 2))
    more = len(truth) - TRUE_LABELS_SHOWN
    labels = ", ".join(f"{label.label} ×{label.positives:,}" for label in truth[:TRUE_LABELS_SHOWN])
    grid.add_row("true", Text(labels + (f" and {more} more" if more > 0 else "")))
    for name, ranked in answers.items():
        grid.add_row(name, _answers(ranked))
    console.print(Text(f"{number}. {query}", style="bold"), Padding(grid, (0, 0, 0, 3)))


def _answers(answers: Sequence[Answer]) -> Text:
    """Return the first answers, and the hits further down with their rank."""
    parts = []
    for rank, answer in enumerate(answers, 1):
        if answer.hit or rank <= ANSWERS_SHOWN:
            mark = "✓ " if answer.hit else ""
            score = "" if answer.score is None else f" ({answer.score:.2f})"
            place = f"{rank}: " if rank > ANSWERS_SHOWN else ""
            parts.append(f"{place}{mark}{answer.label} ×{answer.positives:,}{score}")
    more = len(answers) - len(parts)
    return Text(", ".join(parts) + (f" and {more} more" if more else "") or "none")


def _name(key: SliceMetric) -> str:
    name = shown_heads((*HEADS, TUNED)).get(key.name, key.name)
    if key.kind.startswith(SEEN):
        return f"{name}, seen labels"
    return name + (" labels" if key.kind == "labels" else "")


def _margin(estimate: Estimate, digits: int, sign: str = "") -> str:
    """Format the value with half the width of its interval."""
    value = f"{estimate.value:{sign}z.{digits}f}"
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} ±{(estimate.high - estimate.low) / 2:.1f}"


def _table(*columns: str) -> Table:
    """Build a table with the first column left-aligned and the others right-aligned."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    return table
