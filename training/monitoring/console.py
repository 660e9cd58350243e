"""What a person sees of a run: figures that move while it trains, a line an epoch, a table of figures at the end."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from retrieval.system.console import Console
from training.checkpoint.files import CheckpointFacts, Record
from training.evaluation.headline import HEADLINE_METRICS, HEADS
from training.monitoring.epoch_stats import Step, Tally, by_head_and_term

ONE_WORD = {"dual_encoder": "dual", "classifier": "classifier"}
TERMS = {"decoupled_softmax": "decoupled softmax", "supcon": "SupCon", "triplet": "triplet", "bce": "BCE"}


class ConsoleListener:
    """Listener that draws on stderr; without a terminal it prints the epoch lines and nothing that moves.

    `stopping` says whether the run was asked to stop; a `quiet` one draws and prints nothing.
    """

    def __init__(self, stopping: Callable[[], bool] = lambda: False, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self.stopping = stopping
        self.bars = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}")
        )
        self.steps: TaskID | None = None
        self.figures: RenderableType = ""
        self.remaining = Remaining()
        self.left = 0.0
        self.live = Live(get_renderable=self._drawn, console=self.console, transient=True)

    def __enter__(self) -> "ConsoleListener":
        if self.console.is_terminal and not self.console.quiet:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def _drawn(self) -> Group:
        note = "stopping: the state is saved after this step; Ctrl-C again stops at once" if self.stopping() else ""
        return Group(self.bars, self.figures, note)

    def say(self, text: str) -> None:
        """A few lines above what moves, as they are."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[int, int], object]]:
        """A bar of its own while the stage lasts, with what is left of it, by what has passed."""
        task, began = self.bars.add_task(name, total=None, note=""), time.monotonic()

        def moved(done: int, total: int) -> None:
            left = duration((time.monotonic() - began) * (total - done) / max(done, 1))
            self.bars.update(task, completed=done, total=total, note=f"{done:,} of {total:,}, {left} left")

        try:
            yield moved
        finally:
            self.bars.remove_task(task)

    def stepped(self, step: Step, epoch: Tally) -> None:
        """Move the bar of steps and renew the figures under it."""
        self.left = self.remaining.after(step, epoch, time.monotonic())
        if not self.live.is_started:
            return
        if self.steps is None:
            self.steps = self.bars.add_task("training", total=step.total, note="")
        note = f"epoch {step.epoch} of {step.epochs}, step {step.number} of {step.of}, {duration(self.left)} left"
        self.bars.update(self.steps, completed=step.done, note=note)
        self.figures = live_figures(step, epoch)

    def validated(self, record: Record, best: Record) -> None:
        """One line an epoch; w is the classifier's weight that suits it best, a star marks the best epoch so far."""
        self.console.print(
            epoch_line(record, record is best, self.left, wide=not self.live.is_started),
            highlight=False,
            soft_wrap=True,
        )


class Remaining:
    """How long a run will still take: its steps at this epoch's pace, and what lies between epochs as it was so far."""

    def __init__(self) -> None:
        self._between: list[float] = []
        self._at: tuple[int, float] | None = None

    def after(self, step: Step, epoch: Tally, now: float) -> float:
        """Seconds left after `step`, taken at `now` (any steady clock)."""
        if self._at is not None and self._at[0] != step.epoch:
            self._between.append(max(0.0, now - self._at[1] - step.seconds))
        self._at = step.epoch, now
        pause = sum(self._between) / max(len(self._between), 1)
        return (step.total - step.done) * epoch.seconds / epoch.steps + (step.epochs - step.epoch) * pause


def live_figures(step: Step, epoch: Tally) -> Table:
    """The epoch so far: loss by part, what a pool holds, rates, speed and memory."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_row("loss", f"{epoch.loss:.3f}")
    for head in ("dual_encoder", "classifier"):
        table.add_row(f"  {HEADS[head]}", _head_parts(head, epoch.mean_parts))
    pool = f"{epoch.positives_a_query:.1f} positives a query among {epoch.labels_a_pool:,.0f} labels"
    table.add_row("pool", pool)
    table.add_row("learning rate", ", ".join(f"{name} {rate:.2g}" for name, rate in step.rates.items()))
    table.add_row("speed", f"{epoch.queries_a_second:,.0f} queries a second")
    gpu = f", GPU {step.gpu_bytes / 1e9:.1f} GB" if step.gpu_bytes else ""
    table.add_row("memory", f"{step.memory_bytes / 1e9:.1f} GB{gpu}")
    return table


def _head_parts(head: str, parts: Mapping[str, float]) -> str:
    """`2.915 = decoupled softmax 2.915 (query→label 1.402, label→query 1.513)`, a head without a part being 0."""
    terms = {name: value for name, value in by_head_and_term(parts).items() if name.startswith(f"{head}/")}
    described = []
    for name, value in terms.items():
        term = name.split("/")[1]
        ways = [
            f"{way.replace('_to_', '→')} {parts[f'{head}/{way}/{term}']:.3f}"
            for way in ("query_to_label", "label_to_query")
            if f"{head}/{way}/{term}" in parts
        ]
        described.append(f"{TERMS[term]} {value:.3f} ({', '.join(ways)})")
    return f"{sum(terms.values()):.3f} = {' + '.join(described)}"


def epoch_line(record: Record, best: bool, left: float, *, wide: bool) -> str:
    """One validated epoch on one line; `wide` adds what a terminal shows live: parts, speed, memory, time left."""
    figures, tally = record.figures["unified"], record.tally
    heads = {head: sum(v for n, v in tally.mean_parts.items() if n.startswith(f"{head}/")) for head in ONE_WORD}
    parts = " = " + " + ".join(f"{ONE_WORD[head]} {value:.3f}" for head, value in heads.items())
    live = (
        f"  {tally.positives_a_query:.1f} positives  {tally.queries_a_second:,.0f} queries/s"
        f"  {max(tally.memory_bytes, tally.gpu_bytes) / 1e9:.1f} GB  {duration(left)} left"
    )
    return (
        f"{'★' if best else ' '} epoch {record.epoch:>3}  loss {record.loss:6.3f}{parts if wide else ''}  "
        + "  ".join(f"{name} {figures[name]:5.2f}" for name in ("P@1", "P@5", "PSP@5", "R@10"))
        + f"  w {record.classifier_weight:.1f}  {duration(record.seconds)}{live if wide else ''}"
    )


def duration(seconds: float) -> str:
    """`h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def finished(facts: CheckpointFacts, out: Path, page: Path) -> None:
    """Print what a run reached, how long it took, and where its checkpoint and report are."""
    best, propensity, told = facts.best, facts.recipe.propensity, Console()
    blend = f"classifier weight {best.classifier_weight:g}, popularity {best.popularity:g}"
    title = f"{facts.dataset_name}, validation, epoch {best.epoch}, {blend}"
    told.print(figures_table(title, best.figures, propensity.a, propensity.b))
    spent = duration(facts.history[-1].seconds)
    last = f"Trained in {spent}, validation not counted. Checkpoint: {out}\nReport: {page}"
    told.print(last, markup=False, highlight=False, soft_wrap=True)


def figures_table(title: str, figures: dict[str, dict[str, float]], a: float, b: float) -> Table:
    """A table of the figures people compare, a line each head; PSP with its constants."""
    caption = f"percent; each head alone below; PSP with A={a:g}, B={b:g}"
    table = Table(title=Text(title), caption=caption, title_justify="left", caption_justify="left", box=SIMPLE)
    table.add_column("", no_wrap=True)
    for name in HEADLINE_METRICS:
        table.add_column(name, justify="right")
    for head, name in HEADS.items():
        table.add_row(name, *(f"{figures[head][shown]:.2f}" for shown in HEADLINE_METRICS))
    return table
