"""Run recipes and peers on the datasets of the panel, and write panel.json and the page.

    OUT/tables/NAME.parquet     tables of benchmarks.panel.build
    OUT/NAME/                   the dataset, and a folder per run, as `benchmarks/quality.py` has them for one dataset
    OUT/panel.json, panel.md    results, rewritten after each dataset

A finished run of the same dataset, system and seed is not repeated, so the same command resumes. A system that fails is
listed on the page, and the others go on; so is a dataset that cannot be built.
"""

import argparse
import os
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from benchmarks.measuring.running import open_or_prepare
from benchmarks.measuring.scoring import Scorer, write_task
from benchmarks.measuring.systems import Peer, RecipeRun, RunResult, chosen_peers, run_peer, run_recipe
from benchmarks.panel.build import build
from benchmarks.panel.catalogue import SETS
from benchmarks.panel.page import panel_page
from benchmarks.panel.results import PanelResults, write_results
from benchmarks.panel.scores import DatasetScores, MeasuredSystem, score_dataset
from retrieval.errors import DatasetError, DiptychError
from training.checkpoint.files import read_facts
from training.data.dataset import Dataset
from training.evaluation.headline import UNIFIED
from training.recipe.sections import PropensityRecipe

Result = TypeVar("Result")


def measure_panel(options: argparse.Namespace, console: Console) -> Path:
    """Measure the datasets one after another; return the path of the page. Raises DiptychError for wrong options."""
    for spec in options.recipe:
        RecipeRun(spec, 0).check()
    peers = chosen_peers(options.peers, options.model)
    names = options.panel or [one.name for one in SETS.values() if not one.large]
    sources = {name: _source(name) for name in names}
    page: Path = (options.markdown or options.out / "panel.md").resolve()
    results = PanelResults(command=command(options, peers), threads=options.threads)
    for name, source in zip((_stem(name) for name in names), sources.values(), strict=True):
        console.rule(name, align="left")
        scores, failed = measure_dataset(options, name, source, peers, console)
        datasets = results.datasets | ({name: scores} if scores else {})
        failures = results.failures | ({name: failed} if failed else {})
        results = results.model_copy(update={"datasets": datasets, "failures": failures})
        write_results(results, page.with_suffix(".json"))
        page.write_text(panel_page(results), encoding="utf-8")
    return page


def measure_dataset(
    options: argparse.Namespace, name: str, source: Path | None, peers: Sequence[Peer], console: Console
) -> tuple[DatasetScores | None, dict[str, str]]:
    """Build, prepare and measure a dataset; return its scores, and the reason of each system without a result.

    A dataset that cannot be built has the reason under its own name.
    """
    try:
        run = DatasetRun(options, source or build(SETS[name], options.out / "tables"), name, console)
    except DiptychError as error:
        console.print(f"{name}: {error}", highlight=False)
        return None, {name: str(error)}
    return run.measure(options.recipe, peers), run.failures


class DatasetRun:
    """All systems on one dataset; `failures` has the reason of each system without a result."""

    def __init__(self, options: argparse.Namespace, table: Path, name: str, console: Console) -> None:
        self.out = options.out.resolve() / name
        self.environments = (options.environments or options.out / "environments").resolve()
        self.threads, self.seeds, self.console = options.threads, options.seeds, console
        self.dataset: Dataset = open_or_prepare(table, self.out / "dataset")
        self.failures: dict[str, str] = {}

    def measure(self, recipes: Sequence[str], peers: Sequence[Peer]) -> DatasetScores | None:
        """Run what is missing, then score all systems; None if no system has a result."""
        systems = [system for spec in recipes if (system := self._recipe(spec))]
        if peers:
            write_task(self.dataset, self.out / "task")
        systems += [system for peer in peers if (system := self._peer(peer))]
        constants = PropensityRecipe()
        return score_dataset(Scorer(self.dataset, constants.a, constants.b), systems) if systems else None

    def _recipe(self, spec: str) -> MeasuredSystem | None:
        """Run all seeds of a recipe; None if one fails."""
        runs = [RecipeRun(spec, seed) for seed in range(self.seeds)]
        attempts = [self._attempt(run.title, partial(self._run_recipe, run)) for run in runs]
        results = tuple(result for result in attempts if result)
        if len(results) < len(runs):
            return None
        validation = tuple(read_facts(self.out / run.folder / "checkpoint").best.metrics[UNIFIED] for run in runs)
        return MeasuredSystem(runs[0].title, True, results, validation)

    def _run_recipe(self, run: RecipeRun) -> RunResult:
        folder = self.out / run.folder
        return run_recipe(run, self.dataset.folder.resolve(), self.dataset.fingerprint, folder, self.threads)

    def _peer(self, peer: Peer) -> MeasuredSystem | None:
        folder, fingerprint = self.out / peer.name, self.dataset.fingerprint
        result = self._attempt(
            peer.title,
            lambda: run_peer(peer, self.out / "task", fingerprint, folder, self.environments, self.threads),
        )
        return MeasuredSystem(peer.title, False, (result,)) if result else None

    def _attempt(self, title: str, run: Callable[[], Result]) -> Result | None:
        """Return the result of `run`; None if it fails, after noting the reason."""
        try:
            return run()
        except DiptychError as error:
            self.failures[title] = str(error)
            self.console.print(f"{title}: {error}", highlight=False)
            return None


def command(options: argparse.Namespace, peers: Sequence[Peer]) -> str:
    """Return the command that reproduces the page, without local folders."""
    words = ["python", "benchmarks/quality.py", "--panel", *(_stem(name) for name in options.panel)]
    words += ["--out", "FOLDER", "--recipe", *options.recipe, "--seeds", str(options.seeds)]
    return shlex.join([*words, "--peers", *(peer.name for peer in peers), "--threads", str(options.threads)])


def _source(name: str) -> Path | None:
    """Return the path if `name` is a file or folder, None for a dataset of the panel. Raises DatasetError."""
    if name in SETS:
        return None
    if not os.path.exists(name):
        raise DatasetError(f"{name} is neither a dataset of the panel nor a file. Use one of: {', '.join(SETS)}.")
    return Path(name)


def _stem(name: str) -> str:
    """Return the name of a dataset: of a file, its name without suffixes."""
    return name if name in SETS else Path(name).name.split(".")[0]
