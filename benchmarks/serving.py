"""A real service under load, beside its peers: twelve figures, each with the bars that it must meet.

    python -m benchmarks.serving STORE DATASET --work FOLDER [--only 1 3 5 …] [--markdown FILE]
        [--minilm STORE DATASET --model FOLDER_OR_NAME --environments FOLDER] [--switching STORE] [--small]

STORE is served and asked DATASET's test and training queries. Without --only: 1, 3, 5, 6 and 7, and 2 and 4 where
their stores are given; 8 (fifteen minutes), 9 (schemathesis and 100,000 hostile bodies), 10 (hostile connections),
11 (costly bodies) and 12 (heavy clients) only by --only. Every figure ends within minutes and ends what it started;
what was measured stays in the work folder, and on the page until it is measured again. Loopback only. --small shows
that everything runs; its figures say nothing and get no page.
"""

import argparse
import os
import platform
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from benchmarks.measuring.serving_body_cost import body_cost
from benchmarks.measuring.serving_fairness import fairness
from benchmarks.measuring.serving_hostile import hostile
from benchmarks.measuring.serving_load import QuerySet
from benchmarks.measuring.serving_memory import hostile_memory
from benchmarks.measuring.serving_page import page, section
from benchmarks.measuring.serving_record import SMALL, WHOLE, Figure, ServingSetup, measured
from benchmarks.measuring.serving_speed import (
    beside_ready_bytes,
    beside_sentence_transformers,
    distinct_queries,
    evenly_at_half,
)
from benchmarks.measuring.serving_survival import killed_engines, overload, soak, stop_and_slow_clients, switches
from retrieval.errors import BadInput, DiptychError
from training.data.dataset import Dataset

FIGURES: dict[int, Callable[[ServingSetup], Figure]] = {
    1: beside_ready_bytes,
    2: beside_sentence_transformers,
    3: evenly_at_half,
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
    """Measure, print and write the page; an error is one sentence and code 1, a bar that was missed is none."""
    options, console = arguments(), Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        measure(options, lambda line: console.print(line, markup=False))
    except (DiptychError, AssertionError) as error:  # what starts the service is the tests', and fails as they do
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. What was measured is kept; --only goes on with the rest.", file=sys.stderr)
        return 130
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A service under load, beside its peers.")
    parser.add_argument("store", type=Path, help="a store with an active bundle")
    parser.add_argument("dataset", type=Path, help="the prepared dataset whose queries it is asked")
    parser.add_argument("--work", type=Path, required=True, help="folder for what is measured")
    parser.add_argument("--only", type=int, nargs="+", choices=list(FIGURES), help="these figures")
    parser.add_argument("--minilm", type=Path, nargs=2, metavar=("STORE", "DATASET"), help="for figure 2")
    parser.add_argument("--model", help="for figure 2: the encoder of --minilm, a folder or a name")
    parser.add_argument("--environments", type=Path, help="folder of the peers' environments, for figures 2 and 9")
    parser.add_argument("--switching", type=Path, metavar="STORE", help="for figures 4 and 8: two large bundles")
    parser.add_argument("--small", action="store_true", help="a few seconds a figure, to see that it runs")
    parser.add_argument("--markdown", type=Path, help="also write the page here")
    return parser.parse_args()


def measure(options: argparse.Namespace, tell: Callable[[str], object]) -> None:
    """Everything `main` does but ending."""
    wanted = chosen(options)
    bench = prepared(options, tell)
    for number in wanted:
        tell(f"figure {number}: {(FIGURES[number].__doc__ or '').partition(': ')[2]}")
        found = measured(FIGURES[number], bench, _command(options, number), _machine())
        print("\n".join(section(number, found)), end="\n\n", flush=True)
        if not options.small:
            found.write(_kept(options.work, number))
    if options.markdown:
        kept = {number: Figure.read(path) for number in FIGURES if (path := _kept(options.work, number)).is_file()}
        options.markdown.write_text("\n".join(page(kept)) + "\n", encoding="utf-8")


def chosen(options: argparse.Namespace) -> list[int]:
    """The figures to measure. Raises BadInput when one of them wants an option that is not given."""
    if options.markdown and options.small:
        raise BadInput("--small measures nothing that belongs on a page; leave out --markdown.")
    if options.markdown and not options.markdown.resolve().parent.is_dir():
        raise BadInput(f"--markdown '{options.markdown}': there is no such folder to write to.")
    missing = {
        number: [f"--{name}" for name in names if not getattr(options, name)] for number, names in NEEDED.items()
    }
    wanted = options.only or sorted(ALWAYS + [number for number in (2, 4) if not missing[number]])
    for number in wanted:
        if lacking := missing.get(number):
            raise BadInput(f"figure {number} needs {', '.join(lacking)}.")
    return list(dict.fromkeys(wanted))


def prepared(options: argparse.Namespace, tell: Callable[[str], object]) -> ServingSetup:
    """What the figures share, the queries read. Raises DiptychError when the dataset cannot be."""
    texts = distinct_queries(Dataset.open(options.dataset))
    options.work.mkdir(parents=True, exist_ok=True)
    return ServingSetup(
        options.store, QuerySet(texts, options.work), options.work, SMALL if options.small else WHOLE,
        (options.environments or options.work / "environments").resolve(), tell,
        tuple(options.minilm) if options.minilm else None, options.model, options.switching,
    )  # fmt: skip


def _kept(work: Path, number: int) -> Path:
    return work / f"figure-{number}.json"


def _command(options: argparse.Namespace, number: int) -> str:
    """What makes this figure again, without the folders of this machine."""
    words = ["python", "-m", "benchmarks.serving", options.store.name, options.dataset.name, "--work", "FOLDER"]
    words += ["--only", str(number)]
    for name in NEEDED.get(number, ()):
        given = getattr(options, name)
        names = [Path(one).name for one in given] if isinstance(given, list) else [Path(given).name]
        words += [f"--{name}", *names]
    return shlex.join([*words, *(["--small"] if options.small else [])])


def _machine() -> str:
    return f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} processors"


if __name__ == "__main__":
    sys.exit(main())
