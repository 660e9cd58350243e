"""Recipes and peers on one dataset: a table of their quality and cost on the test split, and its plots.

    python benchmarks/quality.py SOURCE --out FOLDER [--recipe NAME[:KEY=VALUE…] ...] [--seeds 3] [--peers NAME ...]

SOURCE is anything that `diptych prepare` reads, or a prepared dataset. Every system runs in a process of its own; peers
in environments of their own, made by venv and pip on first use in --environments. What FOLDER holds already is not run
again, so the same command goes on after an interruption, and makes the table again at the end of a finished one.
Nothing here chooses anything: a seed's run picks its epoch and weight on validation, and the test split is read once.
"""

import argparse
import json
import os
import shlex
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.measuring.plots import draw
from benchmarks.measuring.running import count, ended, opened
from benchmarks.measuring.scoring import Judge, write_task
from benchmarks.measuring.summary import System, as_json, scored
from benchmarks.measuring.systems import PEERS, RecipeRun, run_peer, run_recipe
from benchmarks.measuring.tables import Setting, report
from training.recipe.schema import PropensityRecipe


def main() -> int:
    """Run what is missing, then write report, figures and plots."""
    return ended(measure, arguments())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Quality and cost of recipes and peers on one dataset.")
    parser.add_argument("source", type=Path, help="anything that `diptych prepare` reads, or a prepared dataset")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs; gone on with when there")
    parser.add_argument(
        "--recipe", nargs="*", default=["default"], metavar="NAME[:KEY=VALUE…]",
        help="recipes, each with overrides if wanted; none at all: peers only (default: default)",
    )  # fmt: skip
    parser.add_argument("--seeds", type=count, default=3, help="seeds 0, 1, … of each recipe (default: 3)")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=[*PEERS], help="default: all; none: recipes")
    parser.add_argument(
        "--environments", type=Path, help="folder of the peers' environments (default: OUT/environments)"
    )
    parser.add_argument(
        "--threads", type=count, default=os.cpu_count() or 1, help="threads to train with (default: all)"
    )
    parser.add_argument(
        "--markdown", type=Path, help="the report; figures (.json) and plots beside it (default: OUT/report.md)"
    )
    return parser.parse_args()


def measure(options: argparse.Namespace, console: Console) -> Path:
    """Everything `main` does but reporting errors; returns the report's path."""
    runs = [[RecipeRun(spec, seed) for seed in range(options.seeds)] for spec in options.recipe]
    for of_recipe in runs:
        for run in of_recipe:
            run.check()
    out = options.out.resolve()
    dataset = opened(options.source, out / "dataset")
    constants = PropensityRecipe()
    judge = Judge(dataset, constants.a, constants.b)
    asked = len(judge.asked)  # refuses a test split without truth before the long part
    console.print(f"{dataset.meta.name}: {asked:,} test queries with a true label", highlight=False)
    systems = []
    for of_recipe in runs:
        found = []
        for run in of_recipe:
            console.rule(f"{run.title}, seed {run.seed}", align="left")
            ran = run_recipe(run, dataset.folder.resolve(), dataset.fingerprint, out / run.folder, options.threads)
            found.append(scored(ran, judge))
        systems.append(System(of_recipe[0].title, True, tuple(found)))
    if options.peers:
        write_task(dataset, out / "task")
    environments = (options.environments or out / "environments").resolve()
    for peer in (PEERS[name] for name in options.peers):
        with console.status(peer.title):
            ran = run_peer(peer, out / "task", dataset.fingerprint, out / peer.name, environments, options.threads)
        console.print(f"{peer.title}: trained in {ran.cost['train_seconds']:.0f} s", highlight=False)
        systems.append(System(peer.title, False, (scored(ran, judge),)))
    return write(options, judge, systems, options.markdown or out / "report.md")


def write(options: argparse.Namespace, judge: Judge, systems: list[System], path: Path) -> Path:
    """Report, figures and plots, side by side under one stem."""
    path.parent.mkdir(parents=True, exist_ok=True)
    setting = Setting(
        command=command(options),
        dataset=judge.dataset,
        queries=len(judge.asked),
        constants=(judge.a, judge.b),
        threads=options.threads,
    )
    plots = draw(judge.dataset.meta.name, systems, path.parent, path.stem)
    path.write_text(report(setting, systems, plots), encoding="utf-8")
    kept = {"command": setting.command, "dataset_fingerprint": judge.dataset.fingerprint, "systems": as_json(systems)}
    path.with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return path


def command(options: argparse.Namespace) -> str:
    """How to make the report again, without the folders of this machine."""
    words = ["python", "benchmarks/quality.py", options.source.name, "--out", "FOLDER", "--recipe", *options.recipe]
    words += ["--seeds", str(options.seeds)] if options.recipe else []
    return shlex.join([*words, "--peers", *options.peers, "--threads", str(options.threads)])


if __name__ == "__main__":
    sys.exit(main())
