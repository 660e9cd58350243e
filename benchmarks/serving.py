"""Measure a real service under load, also against other services: twelve figures, each with limits to meet.

    python -m benchmarks.serving STORE DATASET --work FOLDER [--only 1 3 5 …] [--markdown FILE]
        [--minilm STORE DATASET --model FOLDER_OR_NAME --environments FOLDER] [--switching STORE] [--small]

STORE is served; the queries are DATASET's test and training queries. Without --only: 1, 3, 5, 6 and 7, and 2 and 4 if
their stores are given. 8 (fifteen minutes), 9 (schemathesis and 100,000 hostile bodies), 10 (hostile connections),
11 (costly bodies) and 12 (heavy clients) run only with --only. Every figure ends within minutes and stops the processes
that it started. Results stay in the work folder, and on the page until they are measured again. Loopback only. --small
checks that everything runs; its results have no meaning and get no page.
"""

import argparse
import os
import platform
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from benchmarks.measuring.serving.body_cost import body_cost
from benchmarks.measuring.serving.fairness import fairness
from benchmarks.measuring.serving.hostile import hostile
from benchmarks.measuring.serving.load import QuerySet
from benchmarks.measuring.serving.memory import hostile_memory
from benchmarks.measuring.serving.page import page, section
from benchmarks.measuring.serving.record import FULL, SMALL, Figure, ServingSetup, measured
from benchmarks.measuring.serving.speed import (
    compare_with_ready_bytes,
    compare_with_sentence_transformers,
    distinct_queries,
    latency_at_half,
)
from benchmarks.measuring.serving.survival import killed_engines, overload, soak, stop_and_slow_clients, switches
from retrieval.errors import BadInput, DiptychError
from training.data.dataset import Dataset

FIGURES: dict[int, Callable[[ServingSetup], Figure]] = {
    1: compare_with_ready_bytes,
    2: compare_with_sentence_transformers,
    3: latency_at_half,
    4: switches,
    5: killed_engines,
    6: overload,
    7: stop_and_slow_clients,
    8: soak,
    9: hostile,
    10: hostile_memory,
    11: body_cost,
    12: fairness,
}
ALWAYS = [1, 3, 5, 6, 7]
NEEDED = {2: ("minilm", "model", "environments"), 4: ("switching",), 8: ("switching",), 9: ("environments",)}


def main() -> int:
    """Measure, print and write the page. Prints an error and returns 1 if a figure fails, not if it misses a limit."""
    options, console = arguments(), Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        measure(options, lambda line: console.print(line, markup=False))
    except (DiptychError, AssertionError) as error:  # the service is started by a test helper
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. Finished figures are saved; measure the others with --only.", file=sys.stderr)
        return 130
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A service under load, also against other services.")
    parser.add_argument("store", type=Path, help="a store with an active bundle")
    parser.add_argument("dataset", type=Path, help="the prepared dataset with the queries")
    parser.add_argument("--work", type=Path, required=True, help="folder for results")
    parser.add_argument("--only", type=int, nargs="+", choices=list(FIGURES), help="numbers of the figures to measure")
    parser.add_argument("--minilm", type=Path, nargs=2, metavar=("STORE", "DATASET"), help="for figure 2")
    parser.add_argument("--model", help="for figure 2: the encoder of --minilm, a folder or a name")
    parser.add_argument("--environments", type=Path, help="folder of the peers' environments, for figures 2 and 9")
    parser.add_argument("--switching", type=Path, metavar="STORE", help="for figures 4 and 8: two large bundles")
    parser.add_argument("--small", action="store_true", help="a few seconds per figure, to check that it runs")
    parser.add_argument("--markdown", type=Path, help="also write the page here")
    return parser.parse_args()


def measure(options: argparse.Namespace, log: Callable[[str], object]) -> None:
    """Measure the selected figures, print them, save them, and write the page."""
    numbers = selected_figures(options)
    setup = serving_setup(options, log)
    for number in numbers:
        log(f"figure {number}: {(FIGURES[number].__doc__ or '').partition(': ')[2]}")
        figure = measured(FIGURES[number], setup, _command(options, number), _machine())
        print("\n".join(section(number, figure)), end="\n\n", flush=True)
        if not options.small:
            figure.write(_figure_path(options.work, number))
    if options.markdown:
        saved = {
            number: Figure.read(path) for number in FIGURES if (path := _figure_path(options.work, number)).is_file()
        }
        options.markdown.write_text("\n".join(page(saved)) + "\n", encoding="utf-8")


def selected_figures(options: argparse.Namespace) -> list[int]:
    """Return the numbers of the figures to measure. Raises BadInput if one of them needs an option that is missing."""
    if options.markdown and options.small:
        raise BadInput("--small has no results for a page; leave out --markdown.")
    if options.markdown and not options.markdown.resolve().parent.is_dir():
        raise BadInput(f"--markdown '{options.markdown}': its folder does not exist. Create it first.")
    missing = {
        number: [f"--{name}" for name in names if not getattr(options, name)] for number, names in NEEDED.items()
    }
    numbers = options.only or sorted(ALWAYS + [number for number in (2, 4) if not missing[number]])
    for number in numbers:
        if needed := missing.get(number):
            raise BadInput(f"figure {number} needs {', '.join(needed)}.")
    return list(dict.fromkeys(numbers))


def serving_setup(options: argparse.Namespace, log: Callable[[str], object]) -> ServingSetup:
    """Read the queries and build the common input of all figures. Raises DiptychError if the dataset is invalid."""
    texts = distinct_queries(Dataset.open(options.dataset))
    options.work.mkdir(parents=True, exist_ok=True)
    return ServingSetup(
        options.store, QuerySet(texts, options.work), options.work, SMALL if options.small else FULL,
        (options.environments or options.work / "environments").resolve(), log,
        tuple(options.minilm) if options.minilm else None, options.model, options.switching,
    )  # fmt: skip


def _figure_path(work: Path, number: int) -> Path:
    return work / f"figure-{number}.json"


def _command(options: argparse.Namespace, number: int) -> str:
    """Return the command that reproduces the figure, without local folders."""
    words = ["python", "-m", "benchmarks.serving", options.store.name, options.dataset.name, "--work", "FOLDER"]
    words += ["--only", str(number)]
    for name in NEEDED.get(number, ()):
        value = getattr(options, name)
        names = [Path(one).name for one in value] if isinstance(value, list) else [Path(value).name]
        words += [f"--{name}", *names]
    return shlex.join([*words, *(["--small"] if options.small else [])])


def _machine() -> str:
    return f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} processors"


if __name__ == "__main__":
    sys.exit(main())
