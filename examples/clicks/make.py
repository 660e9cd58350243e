"""Write a click log and a label table like those of a shop, from the keywords example.

    python examples/clicks/make.py FOLDER [--queries 1000]

clicks.csv: q, ad, clicks; one row per (query, label) pair.  ads.csv: id, text, words; one row per label.
"""

import argparse
import csv
from collections.abc import Iterable
from pathlib import Path

import pyarrow.parquet as parquet

KEYWORDS = Path(__file__).parent.parent / "keywords" / "keywords.parquet"


def main() -> None:
    """Read the example's training rows and write the two tables."""
    parser = argparse.ArgumentParser(description="Write a click log and a label table for the quick start.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--queries", type=int, help="number of queries; default: all")
    options = parser.parse_args()
    rows = [row for row in parquet.read_table(KEYWORDS).to_pylist() if row["split"] == "train"][: options.queries]
    labels = sorted({label for row in rows for label in row["labels"]})
    numbers = {label: f"ad-{number}" for number, label in enumerate(labels, 1)}
    pairs = ((row["query"], numbers[label], 1) for row in rows for label in row["labels"])
    ads = ((numbers[label], label, "one" if len(label.split()) == 1 else "several") for label in labels)
    options.folder.mkdir(parents=True, exist_ok=True)
    write(options.folder / "clicks.csv", ("q", "ad", "clicks"), pairs)
    write(options.folder / "ads.csv", ("id", "text", "words"), ads)


def write(path: Path, header: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> None:
    """Write one table and say how many rows it has."""
    count = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(header)
        for row in rows:
            table.writerow(row)
            count += 1
    print(f"{path}: {count:,} rows")


if __name__ == "__main__":
    main()
