"""Write a messy click log of a week like that of a shop with search ads, from the keywords example.

    python examples/clicks/make.py FOLDER [--queries 1000]

FOLDER/log has a file per day. Each row says how often a keyword was shown for a query on this day, and how often it was
clicked. As in real logs, keywords are renamed during the week, queries have several spellings, most keywords that do
not fit are shown and not clicked, and some rows are blank or repeated. The same command writes the same rows.
"""

import argparse
import csv
import gzip
import io
import math
import random
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path

import pyarrow.parquet as parquet

KEYWORDS = Path(__file__).parent.parent / "keywords" / "keywords.parquet"
FIRST_DAY, DAYS = date(2026, 11, 16), 7
MARKETS = ("au", "ca", "uk", "us")
COLUMNS = ("query", "keyword_id", "keyword_text", "market", "impressions", "clicks", "date")
RENAMED = 0.05  # share of the keywords that get another text during the week
QUERIES_PER_DAY = 0.25  # mean probability that a query occurs on a day
RIGHT, WRONG = 8, 4  # keywords shown per query and day: at most so many that fit, and so many that do not
WRONG_CTR = 0.002
SPELLINGS = (str, str, str, str, str, str, str.title, str.upper, lambda text: f" {text} ", lambda text: text.replace(" ", "  "))
Row = list[object]


@dataclass
class Log:
    """The rows of each day, and the days on which each keyword was shown."""

    rows: list[list[Row]] = field(default_factory=lambda: [[] for _ in range(DAYS)])
    days: defaultdict[int, set[int]] = field(default_factory=lambda: defaultdict(set))


def main() -> None:
    """Read the example's training rows and write the log."""
    parser = argparse.ArgumentParser(description="Write a click log for the quick start.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--queries", type=int, help="number of queries; default: all")
    options = parser.parse_args()
    rows = [row for row in parquet.read_table(KEYWORDS).to_pylist() if row["split"] == "train"][: options.queries]
    texts = sorted({label for row in rows for label in row["labels"]})
    log = make_log([row["query"] for row in rows], [row["labels"] for row in rows], texts)
    renamed = rename(log, texts)
    (options.folder / "log").mkdir(parents=True, exist_ok=True)
    for day, day_rows in enumerate(log.rows):
        write(options.folder / "log" / f"{FIRST_DAY + timedelta(days=day)}.csv.gz", day_rows)
    print(f"{len(log.days):,} keywords, {renamed:,} of them renamed during the week")


def make_log(queries: list[str], labels: list[list[str]], texts: list[str]) -> Log:
    """Draw the rows of each day: which queries occur, which keywords are shown, and how often they are clicked."""
    chance, log = random.Random("log"), Log()
    number = {text: place for place, text in enumerate(texts)}
    appeal = [chance.betavariate(1, 6) for _ in texts]  # click rate of a keyword where it fits
    all_labels = [number[text] for one in labels for text in one]
    for query, fitting in zip(queries, ([number[text] for text in one] for one in labels), strict=True):
        demand = chance.paretovariate(1.2)  # how often the query occurs; few queries occur often
        for day in range(DAYS):
            if chance.random() > 1 - math.exp(-demand * QUERIES_PER_DAY / 3):
                continue
            spelling = chance.choice(SPELLINGS)(query)
            shown = chance.sample(fitting, min(len(fitting), RIGHT))
            wrong = [label for label in chance.sample(all_labels, WRONG) if label not in fitting]
            for label in [*shown, *dict.fromkeys(wrong)]:
                impressions = 1 + int(20 * demand * chance.random())
                rate = appeal[label] if label in shown else WRONG_CTR
                clicks = sum(chance.random() < rate for _ in range(impressions))
                log.rows[day].append([spelling, label, texts[label], MARKETS[label % 4], impressions, clicks])
                log.days[label].add(day)
    return log


def rename(log: Log, texts: list[str]) -> int:
    """Give some keywords another text on the days before their rename; return how many."""
    chance = random.Random("renames")
    several = sorted(label for label, days in log.days.items() if len(days) > 1)
    renamed = chance.sample(several, min(len(several), round(RENAMED * len(log.days))))
    first_day = {label: chance.choice(sorted(log.days[label])[1:]) for label in renamed}  # with the present text
    for day, rows in enumerate(log.rows):
        for row in rows:
            label = row[1]
            if day < first_day.get(label, 0):
                row[2] = f"{texts[label]} icon"
            row[1] = f"kw-{label + 1}"
            row.append(FIRST_DAY + timedelta(days=day))
    return len(renamed)


def write(path: Path, rows: list[Row]) -> None:
    """Write the rows of a day, with some blank and some repeated ones, and say how many there are."""
    chance, text = random.Random(path.name), io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    count = 0
    for row in rows:
        copies = 2 if chance.random() < 0.002 else 1
        table.writerows([row] * copies)
        count += copies
        if chance.random() < 0.0005:
            text.write("\n")
            count += 1
    path.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))
    print(f"{path}: {count:,} rows")


if __name__ == "__main__":
    main()
