"""Compare recipes and peers on one dataset, or on the panel: a table of quality and cost on the test split, with plots.

    python benchmarks/quality.py SOURCE --out FOLDER [--recipe NAME[:KEY=VALUE…] ...] [--seeds 3] [--peers NAME ...]
    python benchmarks/quality.py --panel [NAME ...] --out FOLDER [the same options]

SOURCE is anything that `diptych prepare` reads, or a prepared dataset. `--panel` builds the datasets of
benchmarks/panel and writes one page of all, see benchmarks/panel/measure.py. Every system runs in its own process;
peers run in separate environments, which venv and pip make in --environments on first use. Runs that FOLDER already has
are not repeated, so the same command resumes after an interruption, or writes the table of finished runs again. Each
run selects its epoch and weight on validation; the test split is read once and selects nothing.
"""

import argparse
import json
import os
import shlex
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.measuring.plots import draw
from benchmarks.measuring.running import count, open_or_prepare, run_command
from benchmarks.measuring.scoring import Scorer, write_task
from benchmarks.measuring.summary import System, as_json, scored
from benchmarks.measuring.systems import PEERS, RecipeRun, chosen_peers, run_peer, run_recipe
from benchmarks.measuring.tables import Setting, report
from benchmarks.panel.measure import measure_panel
from training.recipe.sections import PropensityRecipe


def main() -> int:
    """Run the missing systems, then write report, data and plots."""
    options = arguments()
    return run_command(measure if options.panel is None else measure_panel, options)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Quality and cost of recipes and peers on one dataset.")
    parser.add_argument(
        "source", type=Path, nargs="?", help="anything that `diptych prepare` reads, or a prepared dataset"
    )
    parser.add_argument(
        "--panel", nargs="*", metavar="NAME", help="datasets of the panel, or sources; no value: all but the large ones"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the runs; finished runs in it are not repeated"
    )
    parser.add_argument(
        "--recipe", nargs="*", default=["default"], metavar="NAME[:KEY=VALUE…]",
        help="recipes with optional overrides; no value: peers only (default: default)",
    )  # fmt: skip
    parser.add_argument("--seeds", type=count, default=3, help="seeds 0, 1, … of each recipe (default: 3)")
    parser.add_argument(
        "--peers", nargs="*", choices=[*PEERS], help="peers; no value: recipes only (default: all that can run)"
    )
    parser.add_argument("--model", type=Path, help="folder of a pretrained encoder, for peers that fine-tune one")
    parser.add_argument(
        "--environments", type=Path, help="folder of the peers' environments (default: OUT/environments)"
    )
    parser.add_argument(
        "--threads", type=count, default=os.cpu_count() or 1, help="threads to train with (default: all)"
    )
    parser.add_argument(
        "--markdown",
        type=Path,
        help="the report; its data (.json) and plots go to the same folder (default: OUT/report.md)",
    )
    options = parser.parse_args()
    if (options.source is None) == (options.panel is None):
        parser.error("give a source or --panel")
    return options


def measure(options: argparse.Namespace, console: Console) -> Path:
    """Run the systems and write the report; return its path."""
    runs = [[RecipeRun(spec, seed) for seed in range(options.seeds)] for spec in options.recipe]
    for of_recipe in runs:
        for run in of_recipe:
            run.check()
    peers = chosen_peers(options.peers, options.model)
    out = options.out.resolve()
    dataset = open_or_prepare(options.source, out / "dataset")
    constants = PropensityRecipe()
    scorer = Scorer(dataset, constants.a, constants.b)
    queries = len(scorer.queries)  # fails early if the test split has no true labels
    console.print(f"{dataset.meta.name}: {queries:,} test queries with a true label", highlight=False)
    systems = []
    for of_recipe in runs:
        results = []
        for run in of_recipe:
            console.rule(f"{run.title}, seed {run.seed}", align="left")
            result = run_recipe(run, dataset.folder.resolve(), dataset.fingerprint, out / run.folder, options.threads)
            results.append(scored(result, scorer))
        systems.append(System(of_recipe[0].title, True, tuple(results)))
    if peers:
        write_task(dataset, out / "task")
    environments = (options.environments or out / "environments").resolve()
    for peer in peers:
        with console.status(peer.title):
            result = run_peer(peer, out / "task", dataset.fingerprint, out / peer.name, environments, options.threads)
        console.print(f"{peer.title}: trained in {result.cost['train_seconds']:.0f} s", highlight=False)
        systems.append(System(peer.title, False, (scored(result, scorer),)))
    return write(options, scorer, systems, options.markdown or out / "report.md")


def write(options: argparse.Namespace, scorer: Scorer, systems: list[System], path: Path) -> Path:
    """Write report, data and plots to one folder, with the same stem."""
    path.parent.mkdir(parents=True, exist_ok=True)
    setting = Setting(
        command=command(options),
        dataset=scorer.dataset,
        queries=len(scorer.queries),
        constants=(scorer.a, scorer.b),
        threads=options.threads,
    )
    plots = draw(scorer.dataset.meta.name, systems, path.parent, path.stem)
    path.write_text(report(setting, systems, plots), encoding="utf-8")
    data = {"command": setting.command, "dataset_fingerprint": scorer.dataset.fingerprint, "systems": as_json(systems)}
    path.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return path


def command(options: argparse.Namespace) -> str:
    """Return the command that reproduces the report, without local folders."""
    words = ["python", "benchmarks/quality.py", options.source.name, "--out", "FOLDER", "--recipe", *options.recipe]
    words += ["--seeds", str(options.seeds)] if options.recipe else []
    peers = [peer.name for peer in chosen_peers(options.peers, options.model)]
    return shlex.join([*words, "--peers", *peers, "--threads", str(options.threads)])


if __name__ == "__main__":
    sys.exit(main())
