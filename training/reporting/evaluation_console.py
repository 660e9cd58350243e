"""What a person sees of `diptych evaluate`, on 80 columns."""

from collections.abc import Iterator, Sequence

from rich import box
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from retrieval.system.console import Console
from training.evaluation.evaluate import Part
from training.evaluation.results import BY_KIND, HEADLINE, Comparison, Reading, Subject
from training.evaluation.scoring import HEADS, Blend
from training.evaluation.significance import ALPHA, Contrast, Estimate
from training.evaluation.slices import Answer

TRUE_LABELS_SHOWN = 8
ANSWERS_SHOWN = 5


def show(told: Reading | Comparison) -> None:
    """Print one checkpoint's reading, or the comparison of two."""
    console = Console(highlight=False, markup=False)
    console.print(_about(told.subject))
    if isinstance(told, Reading):
        _show_reading(console, told)
    else:
        _show_comparison(console, told)


def _show_reading(console: Console, told: Reading) -> None:
    """Headline, label frequency, query length, and the queries it gets most wrong."""
    console.print(f"{told.checkpoint}\n{_mixed(told.blend)}", soft_wrap=True)
    console.print(_headline(told), _by_label_frequency(told), _by_query_length(told))
    console.print(
        f"Percent. ±: half the 95 % bootstrap interval, {_resamples(told.subject)}.\n"
        "In brackets: unified minus that head, paired. C@10 has no interval: a resample\n"
        f"repeats queries, so it covers fewer labels. {_constants(told.subject)}."
    )
    if told.worst:
        console.print("\nMost wrong (✓ right, ×n training positives of the label, score in brackets):")
    for number, example in enumerate(told.worst, 1):
        _print_query(console, number, example.query, example.truth, {"answers": example.answers})


def _mixed(blend: Blend) -> str:
    return f"classifier weight {blend.weight:g}, popularity {blend.popularity:g}"


def _show_comparison(console: Console, told: Comparison) -> None:
    """Every part with its test, the queries on which each falls furthest behind, and last the verdict."""
    for side, checkpoint, blend in zip("AB", told.checkpoints, told.blends, strict=True):
        console.print(f"{side}  {checkpoint}, {_mixed(blend)}", soft_wrap=True)
    console.print(_contrasts(told.parts))
    console.print(
        f"Percent; P@5 of labels is their part of P@5. Intervals: paired bootstrap, not\n"
        f"corrected. p: paired permutation test, corrected for {len(told.parts)} tests (maxT); better:\n"
        f"p < {ALPHA:g}. Each with {_resamples(told.subject)}. {_constants(told.subject)}."
    )
    for side, other, pairs in (("A", "B", told.first_behind), ("B", "A", told.second_behind)):
        if pairs:
            console.print(f"\n{side} is furthest behind {other} (✓ right, ×n training positives, score in brackets):")
        for number, (first, second) in enumerate(pairs, 1):
            _print_query(console, number, first.query, first.truth, {"A": first.answers, "B": second.answers})
    console.print()
    for line in _verdict(told.parts):
        console.print(line)


def _about(subject: Subject) -> Text:
    return Text(f"{subject.dataset}, {subject.split}: {subject.queries:,} queries with a true label", style="bold")


def _constants(subject: Subject) -> str:
    return f"PSP with A={subject.propensity['a']:g}, B={subject.propensity['b']:g}"


def _resamples(subject: Subject) -> str:
    return f"{subject.resamples:,} resamples, seed {subject.seed}"


def _headline(told: Reading) -> Table:
    table = _table("", "unified", "dual encoder alone", "classifier alone")
    for metric in HEADLINE:
        cells = [_margin(told.estimates["unified"][metric], 2)]
        for head, minus in told.unified_minus.items():
            cells.append(f"{told.figures[head][metric]:.2f}  ({_margin(minus[metric], 1, '+')})")
        table.add_row(metric, *cells)
    table.add_row("C@10", *(f"{told.figures[head]['C@10']:.2f}" for head in HEADS))
    return table


def _by_label_frequency(told: Reading) -> Table:
    table = _table("labels (training positives)", "number", "in truth", "R@10", "part of P@5")
    for name, group in told.label_frequency.items():
        counts = f"{group.least:,}" if group.least == group.most else f"{group.least:,}–{group.most:,}"
        figures = (_margin(group.estimates[metric], 1) for metric in BY_KIND["labels"])
        table.add_row(f"{name} ({counts})", f"{group.labels:,}", f"{group.true_labels:,}", *figures)
    return table


def _by_query_length(told: Reading) -> Table:
    table = _table("query", "queries", *BY_KIND["queries"])
    for name, group in told.query_length.items():
        figures = (_margin(group.estimates[metric], 1) for metric in BY_KIND["queries"])
        table.add_row(name, f"{group.queries:,}", *figures)
    return table


def _contrasts(parts: Sequence[Contrast[Part]]) -> Table:
    table = _table("", "", "A", "B", "A − B", "95 % interval", "p", "better")
    before = Part("", "", "")
    for contrast in parts:
        if before.kind not in ("", contrast.part.kind):
            table.add_section()
        name = "" if before[:2] == contrast.part[:2] else _name(contrast.part)
        if name and contrast.part.kind == "queries":
            name += f" ({contrast.queries:,})"
        before = contrast.part
        low, high = contrast.difference.low, contrast.difference.high
        table.add_row(
            name,
            contrast.part.metric,
            f"{contrast.first:.1f}",
            f"{contrast.second:.1f}",
            f"{contrast.difference.value:+z.1f}",
            "" if low is None or high is None else f"{low:+z.1f} … {high:+z.1f}",
            f"{contrast.p_corrected:.3f}" if contrast.p_corrected >= 0.001 else "<0.001",
            {"first": "A", "second": "B", None: ""}[contrast.better],
        )
    return table


def _verdict(parts: Sequence[Contrast[Part]]) -> Iterator[Text]:
    """A sentence for each side that is better somewhere, and how many tests found no difference."""
    for side, key in (("A", "first"), ("B", "second")):
        better: dict[str, list[str]] = {}
        for contrast in parts:
            if contrast.better == key:
                better.setdefault(_name(contrast.part), []).append(contrast.part.metric)
        if better:
            where = "; ".join(f"{name} {', '.join(metrics)}" for name, metrics in better.items())
            yield Text(f"{side} is better on: {where}.")
    undecided = sum(contrast.better is None for contrast in parts)
    if undecided:
        yield Text(f"No difference shown by {undecided} of {len(parts)} tests.")


def _print_query(
    console: Console, number: int, query: str, truth: Sequence[Answer], answers: dict[str, tuple[Answer, ...]]
) -> None:
    """The query, its true labels, and each model's answers below them."""
    grid = Table.grid(padding=(0, 2))
    more = len(truth) - TRUE_LABELS_SHOWN
    named = ", ".join(f"{label.label} ×{label.positives:,}" for label in truth[:TRUE_LABELS_SHOWN])
    grid.add_row("true", Text(named + (f" and {more} more" if more > 0 else "")))
    for name, of in answers.items():
        grid.add_row(name, _answers(of))
    console.print(Text(f"{number}. {query}", style="bold"), Padding(grid, (0, 0, 0, 3)))


def _answers(answers: Sequence[Answer]) -> Text:
    """The first answers, and the right ones further down with their rank."""
    parts = []
    for rank, answer in enumerate(answers, 1):
        if answer.hit or rank <= ANSWERS_SHOWN:
            mark = "✓ " if answer.hit else ""
            score = "" if answer.score is None else f" ({answer.score:.2f})"
            place = f"{rank}: " if rank > ANSWERS_SHOWN else ""
            parts.append(f"{place}{mark}{answer.label} ×{answer.positives:,}{score}")
    more = len(answers) - len(parts)
    return Text(", ".join(parts) + (f" and {more} more" if more else "") or "none")


def _name(part: Part) -> str:
    return HEADS.get(part.name, part.name) + (" labels" if part.kind == "labels" else "")


def _margin(estimate: Estimate, digits: int, sign: str = "") -> str:
    """The value with half the width of its interval."""
    value = f"{estimate.value:{sign}z.{digits}f}"
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} ±{(estimate.high - estimate.low) / 2:.1f}"


def _table(*columns: str) -> Table:
    """The first column to the left, figures to the right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for at, column in enumerate(columns):
        table.add_column(column, justify="right" if at else "left", no_wrap=True)
    return table
