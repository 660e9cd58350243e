"""Quality of a recipe on one source: median over seeds on the test split, with the paired gaps between the heads.

    python benchmarks/quality.py examples/keywords --recipe keywords --out FOLDER [--seeds 3]

Nothing here chooses anything: a seed's run picks its epoch and weight on validation, and the test split is read once at
the end. Training seconds exclude validation. `--markdown FILE` keeps the tables.
"""

import argparse
import platform
import statistics
import time
from pathlib import Path

from training.console import ConsoleListener, gap_lines
from training.data.dataset import Dataset
from training.data.prepare import PrepareSettings, prepare
from training.measure import Measurement, measure
from training.recipe import load_recipe
from training.run import train

FIGURES = ("P@1", "P@5", "R@10", "PSP@5")
HEADS = ("unified", "dual_encoder", "classifier")


def main() -> None:
    """Prepare once, then train and measure each seed, then print medians."""
    options = arguments()
    dataset, _ = prepare(options.source, options.out / "dataset", PrepareSettings())
    runs = [one_seed(dataset, options, seed) for seed in range(options.seeds)]
    measured, seconds, wall = (list(column) for column in zip(*runs, strict=True))
    text = report(options, measured, seconds, wall)
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Median quality of a recipe over seeds.")
    parser.add_argument("source", type=Path, help="anything that `diptych prepare` reads")
    parser.add_argument("--recipe", default="default")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for dataset and checkpoints; gone on with when there"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--markdown", type=Path)
    return parser.parse_args()


def one_seed(dataset: Dataset, options: argparse.Namespace, seed: int) -> tuple[Measurement, float, float]:
    """The test figures of one seed, its training seconds, and the wall seconds of the whole command."""
    started = time.perf_counter()
    folder = options.out / f"{options.recipe}-seed{seed}"
    with ConsoleListener() as listener:
        facts = train(dataset, load_recipe(options.recipe, [f"seed={seed}"]), folder, listener)
    wall = time.perf_counter() - started
    return measure(folder, dataset, "test"), facts.history[-1].seconds, wall


def report(options: argparse.Namespace, runs: list[Measurement], seconds: list[float], wall: list[float]) -> str:
    """Markdown: a line a seed, medians, and every seed's gaps."""
    a, b = runs[0].propensity
    lines = [
        f"# {runs[0].dataset_name}, recipe {options.recipe}, test split ({runs[0].queries:,} queries)",
        "",
        f"`python benchmarks/quality.py {options.source} --recipe {options.recipe} --out FOLDER --seeds {len(runs)}`",
        "",
        f"Percent; PSP with A={a:g}, B={b:g}; {platform.machine()}, Python {platform.python_version()}.",
        "",
        "| seed | head | " + " | ".join(FIGURES) + " | training s | wall s |",
        "|---|---|" + "---|" * (len(FIGURES) + 2),
    ]
    for seed, run in enumerate(runs):
        for head in HEADS:
            figures = " | ".join(f"{run.figures[head][name]:.2f}" for name in FIGURES)
            lines.append(f"| {seed} | {head} | {figures} | {seconds[seed]:.0f} | {wall[seed]:.0f} |")
    for head in HEADS:
        medians = (statistics.median(run.figures[head][name] for run in runs) for name in FIGURES)
        lines.append(
            f"| median | **{head}** | "
            + " | ".join(f"{value:.2f}" for value in medians)
            + f" | {statistics.median(seconds):.0f} | {statistics.median(wall):.0f} |"
        )
    for seed, run in enumerate(runs):
        lines += [
            "",
            f"Seed {seed}, classifier weight {run.weight:g}:",
            "",
            *(f"- {line}" for line in gap_lines(run.gaps)),
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
