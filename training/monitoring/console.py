"""Console output of a run: live statistics, one line per validated epoch, and a table of metrics at the end."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich import progress as rich_progress
from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from retrieval.system.console import Console
from retrieval.system.progress import Progress
from training.checkpoint.schema import CheckpointFacts, EpochRecord, MetricsByHead
from training.evaluation.headline import (
    CLICK_METRICS,
    HEADLINE_METRICS,
    HEADS,
    SEEN_LABELS,
    UNIFIED,
    shown_heads,
    shown_metrics,
)
from training.monitoring.status_log import StatusLog
from training.optim.step_stats import EpochStats, StepStats, by_head_and_term

SHORT_NAMES = {"dual_encoder": "dual", "classifier": "classifier"}
TERMS = {"decoupled_softmax": "decoupled softmax", "supcon": "SupCon", "triplet": "triplet", "bce": "BCE"}


class ConsoleCallback:
    """Draws live statistics on stderr; without a terminal it prints a line per validated epoch and per half minute.

    `stopping` returns whether the run was asked to stop; with `quiet` nothing is printed.
    """

    def __init__(self, stopping: Callable[[], bool] = lambda: False, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self.stopping = stopping
        self.bars = rich_progress.Progress(
            rich_progress.SpinnerColumn(),
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(),
            rich_progress.TextColumn("{task.fields[note]}"),
        )
        self.steps: rich_progress.TaskID | None = None
        self.statistics: RenderableType = ""
        self.estimate = RemainingTime()
        self.seconds_left = 0.0
        self.live = Live(get_renderable=self._render, console=self.console, transient=True)
        self.notes = {"": "starting"}  # by stage, the current one last; "" stands for the steps
        self.log = StatusLog(self.status, self.print)

    def __enter__(self) -> "ConsoleCallback":
        if self.console.is_terminal and not self.console.quiet:
            self.live.start()
        elif not self.console.quiet:
            self.log.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.live.stop()
        failure = self.log.stop()
        if failure is None:
            return
        if error is None:
            raise failure
        error.add_note(f"The status line failed too: {failure}")  # and must not hide the error of the run

    def status(self) -> str:
        """Return the current stage, or epoch and step, and the time left, on one line."""
        name, note = list(self.notes.items())[-1]
        return ": ".join(part for part in (name, note) if part)

    def _render(self) -> Group:
        note = "stopping: the state is saved after this step; Ctrl-C again stops at once" if self.stopping() else ""
        return Group(self.bars, self.statistics, note)

    def print(self, text: str) -> None:
        """Print text above the live statistics."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        """Show a progress bar with the estimated time left while the stage lasts."""
        task, began = self.bars.add_task(name, total=None, note=""), time.monotonic()
        self.notes[name] = ""

        def progress(done: int, total: int) -> None:
            left = duration((time.monotonic() - began) * (total - done) / max(done, 1))
            self.notes[name] = f"{done:,} of {total:,}, {left} left"
            self.bars.update(task, completed=done, total=total, note=self.notes[name])

        try:
            yield progress
        finally:
            self.bars.remove_task(task)
            self.notes.pop(name, None)

    def on_step(self, step: StepStats, epoch: EpochStats) -> None:
        """Update the progress bar of the steps and the live statistics."""
        self.seconds_left = self.estimate.after(step, epoch, time.monotonic())
        index = step.index
        place = f"epoch {index.epoch + 1} of {index.epochs}, step {index.step + 1} of {index.steps_per_epoch}"
        self.notes[""] = f"{place}, {duration(self.seconds_left)} left"
        if not self.live.is_started:
            return
        if self.steps is None:
            self.steps = self.bars.add_task("training", total=index.total, note="")
        self.bars.update(self.steps, completed=index.done + 1, note=self.notes[""])
        self.statistics = live_statistics(step, epoch)

    def on_validation(self, record: EpochRecord, best: EpochRecord) -> None:
        """Print the epoch on one line."""
        self.console.print(
            epoch_line(record, record is best, self.seconds_left, wide=not self.live.is_started),
            highlight=False,
            soft_wrap=True,
        )


class RemainingTime:
    """Estimates the time left: steps at this epoch's speed, and the mean time between epochs so far."""

    def __init__(self) -> None:
        self._between: list[float] = []
        self._last: tuple[int, float] | None = None

    def after(self, step: StepStats, epoch: EpochStats, now: float) -> float:
        """Return the seconds left after `step`, which ended at `now` on a monotonic clock."""
        index = step.index
        if self._last is not None and self._last[0] != index.epoch:
            self._between.append(max(0.0, now - self._last[1] - step.seconds))
        self._last = index.epoch, now
        pause = sum(self._between) / max(len(self._between), 1)
        steps_left, epochs_left = index.total - index.done - 1, index.epochs - index.epoch - 1
        return steps_left * epoch.seconds / epoch.steps + epochs_left * pause


def live_statistics(step: StepStats, epoch: EpochStats) -> Table:
    """Return a table of the epoch so far: loss by term, pool, learning rates, speed and memory."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_row("loss", f"{epoch.loss:.3f}")
    for head in ("dual_encoder", "classifier"):
        table.add_row(f"  {HEADS[head]}", _head_loss(head, epoch.mean_losses))
    pool = f"{epoch.positives_per_query:.1f} positives per query among {epoch.labels_per_pool:,.0f} labels"
    table.add_row("pool", pool)
    table.add_row("learning rate", ", ".join(f"{name} {rate:.2g}" for name, rate in step.rates.items()))
    table.add_row("speed", f"{epoch.queries_per_second:,.0f} queries per second")
    gpu = f", GPU {step.gpu_bytes / 1e9:.1f} GB" if step.gpu_bytes else ""
    table.add_row("memory", f"{step.memory_bytes / 1e9:.1f} GB{gpu}")
    return table


def _head_loss(head: str, losses: Mapping[str, float]) -> str:
    """Format `2.915 = decoupled softmax 2.915 (query→label 1.402, label→query 1.513)`."""
    terms = {name: value for name, value in by_head_and_term(losses).items() if name.startswith(f"{head}/")}
    described = []
    for name, value in terms.items():
        term = name.split("/")[1]
        directions = [
            f"{direction.replace('_to_', '→')} {losses[f'{head}/{direction}/{term}']:.3f}"
            for direction in ("query_to_label", "label_to_query")
            if f"{head}/{direction}/{term}" in losses
        ]
        described.append(f"{TERMS[term]} {value:.3f} ({', '.join(directions)})")
    return f"{sum(terms.values()):.3f} = {' + '.join(described)}"


def epoch_line(record: EpochRecord, best: bool, seconds_left: float, *, wide: bool) -> str:
    """Format a validated epoch as one line; a star marks the best epoch so far, w is the classifier weight.

    `wide` adds the live statistics of a terminal: loss by head, speed, memory, time left.
    """
    metrics, stats = record.metrics["unified"], record.stats
    names = shown_metrics(("P@1", "P@5", "PSP@5", "R@10"), metrics, CLICK_METRICS[:1])
    heads = {head: sum(v for n, v in stats.mean_losses.items() if n.startswith(f"{head}/")) for head in SHORT_NAMES}
    losses = " = " + " + ".join(f"{SHORT_NAMES[head]} {value:.3f}" for head, value in heads.items())
    live = (
        f"  {stats.positives_per_query:.1f} positives  {stats.queries_per_second:,.0f} queries/s"
        f"  {max(stats.memory_bytes, stats.gpu_bytes) / 1e9:.1f} GB  {duration(seconds_left)} left"
    )
    return (
        f"{'★' if best else ' '} epoch {record.epoch:>3}  loss {record.loss:6.3f}{losses if wide else ''}  "
        + "  ".join(f"{name} {metrics[name]:5.2f}" for name in names)
        + f"  w {record.classifier_weight:.1f}  {duration(record.seconds)}{live if wide else ''}"
    )


def duration(seconds: float) -> str:
    """Format seconds as `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def print_summary(facts: CheckpointFacts, out: Path, report: Path) -> None:
    """Print the metrics of the best epoch, the training time, and the paths of checkpoint and report."""
    best, propensity, console = facts.best, facts.recipe.propensity, Console()
    weights = f"classifier weight {best.classifier_weight:g}, popularity {best.popularity:g}"
    weights += f", memory {best.memory_weight:g}" if best.memory_weight else ""
    if best.tuned is not None:
        weights += f"; tuned: {best.tuned[0]:g}, {best.tuned[1]:g}"
    title = f"{facts.dataset_name}, validation, epoch {best.epoch}, {weights}"
    console.print(metrics_table(title, best.metrics, propensity.a, propensity.b))
    if best.seen_metrics:
        console.print(metrics_table(f"The same, {SEEN_LABELS}", best.seen_metrics, propensity.a, propensity.b))
    seconds = duration(facts.history[-1].seconds)
    epochs, last = facts.recipe.optimizer.epochs, facts.history[-1].epoch
    ended = "" if last == epochs else f", ended after epoch {last} of {epochs}: validation did not improve further"
    text = f"Trained in {seconds}, without validation{ended}. Checkpoint: {out}\nReport: {report}"
    if not facts.query_identity:
        text += "\nThe tokenizer distinguishes case, so spellings of one query may have different answers."
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def metrics_table(title: str, metrics: MetricsByHead, a: float, b: float) -> Table:
    """Return a table of the headline metrics with one row per head, and the propensity constants of PSP."""
    caption = f"Percent. Rows 2 and 3 use one head only, without memory. PSP with A={a:g}, B={b:g}"
    table = Table(title=Text(title), caption=caption, title_justify="left", caption_justify="left", box=SIMPLE)
    table.add_column("", no_wrap=True)
    names = shown_metrics(HEADLINE_METRICS, metrics[UNIFIED])
    for name in names:
        table.add_column(name, justify="right")
    for head, name in shown_heads(metrics).items():
        table.add_row(name, *(f"{metrics[head][shown]:.2f}" for shown in names))
    return table
