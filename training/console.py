"""What a person sees of a run: a progress bar with ETA, a line an epoch, a table of figures at the end."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from training.checkpoint import Record
from training.evaluation import Figures
from training.tally import Step, Tally

SHOWN = ("P@1", "P@5", "nDCG@5", "PSP@1", "PSP@5", "R@10", "C@10")
NAMES = {"unified": "unified", "dual_encoder": "dual encoder", "classifier": "classifier"}
Gaps = Mapping[str, tuple[float, float, float]]


class ConsoleListener:
    """Listener that draws on stderr; without a terminal it prints the epoch lines and no bars."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.steps: TaskID | None = None

    def __enter__(self) -> "ConsoleListener":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[int, int], object]]:
        """A bar of its own while the stage lasts."""
        task = self.progress.add_task(name, total=None, note="")
        try:
            yield lambda done, total: self.progress.update(task, completed=done, total=total)
        finally:
            self.progress.remove_task(task)

    def stepped(self, step: Step, epoch: Tally) -> None:
        """Move the bar of steps."""
        if self.steps is None:
            self.steps = self.progress.add_task("training", total=step.total, completed=step.done - 1, note="")
        self.progress.update(
            self.steps, completed=step.done, description=f"training, epoch {step.epoch}", note=f"loss {epoch.loss:.3f}"
        )

    def validated(self, record: Record, best: Record) -> None:
        """One line an epoch; w is the classifier's weight that suits it best, a star marks the best epoch so far."""
        figures = record.figures["unified"]
        mark = "★" if record is best else " "
        self.console.print(
            f"{mark} epoch {record.epoch:>3}  loss {record.loss:6.3f}  "
            + "  ".join(f"{name} {figures[name]:5.2f}" for name in ("P@1", "P@5", "PSP@5", "R@10"))
            + f"  w {record.classifier_weight:.1f}  {record.seconds:4.0f} s",
            highlight=False,
            soft_wrap=True,
        )


def figures_table(title: str, figures: Figures, a: float, b: float) -> Table:
    """A table of the figures people compare, a line each head; PSP with its constants."""
    caption = f"percent; each head alone below; PSP with A={a:g}, B={b:g}"
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left", box=SIMPLE)
    table.add_column("", no_wrap=True)
    for name in SHOWN:
        table.add_column(name, justify="right")
    for head, name in NAMES.items():
        table.add_row(name, *(f"{figures[head][shown]:.2f}" for shown in SHOWN))
    return table


def gap_lines(gaps_at: Mapping[int, Gaps]) -> list[str]:
    """What the unified model adds to each head, with the paired 95 % interval."""
    return [
        f"P@{k}: unified − {NAMES[head]} = {mean:+.2f} points (95 % interval {low:+.2f} … {high:+.2f}, paired by query)"
        for k, gaps in gaps_at.items()
        for head, (mean, low, high) in gaps.items()
    ]


def as_json(figures: Figures) -> str:
    """Figures as one JSON object, percent with four decimals."""
    rounded = {head: {name: round(value, 4) for name, value in of.items()} for head, of in figures.items()}
    return json.dumps(rounded, indent=2)
