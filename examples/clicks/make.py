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
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path

import pyarrow.parquet as parquet

KEYWORDS = Path(__file__).parent.parent / "keywords" / "keywords.parquet"
FIRST_DAY, WEEK = date(2026, 11, 16), 7
MARKETS = ("au", "ca", "uk", "us")
COLUMNS = ("query", "keyword_id", "keyword_text", "market", "impressions", "clicks", "date")
SPELLINGS = (str, str, str, str, str, str, str, str.title, str.upper, lambda text: text.replace(" ", "  ") + " ")
FITTING, OTHERS = 8, 4  # most keywords per query and day that fit, and that do not
CTR_OF_OTHERS = 0.002
RENAMED = 0.05  # share of the keywords that get another text during the week
REPEATED, BLANK = 0.002, 0.0005  # shares of the rows


@dataclass
class Log:
    """The rows of each day, and the days on which each keyword was shown."""

    rows: list[list[list[object]]]
    days: defaultdict[int, set[int]] = field(default_factory=lambda: defaultdict(set))


def main() -> None:
    """Read the example's training rows and write the log."""
    parser = argparse.ArgumentParser(description="Write a click log for the quick start.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--queries", type=int, help="number of queries; default: all")
    parser.add_argument("--days", type=int, default=WEEK, help="number of days; more do not change the earlier ones")
    options = parser.parse_args()
    table = [row for row in parquet.read_table(KEYWORDS).to_pylist() if row["split"] == "train"][: options.queries]
    texts = sorted({text for row in table for text in row["labels"]})
    number = {text: place for place, text in enumerate(texts)}
    queries = {row["query"]: [number[text] for text in row["labels"]] for row in table}
    log = make_log(queries, texts, options.days)
    renamed = rename(log, texts)
    (options.folder / "log").mkdir(parents=True, exist_ok=True)
    for day, rows in enumerate(log.rows):
        write(options.folder / "log" / f"{FIRST_DAY + timedelta(days=day)}.csv.gz", rows)
    print(f"{len(log.days):,} keywords, {renamed:,} of them renamed during the week")


def make_log(queries: dict[str, list[int]], texts: list[str], days: int) -> Log:
    """Draw the rows of each day: which queries occur, which keywords are shown, and how often each is clicked."""
    log, chance = Log([[] for _ in range(days)]), random.Random("keywords")
    click_rates = [chance.betavariate(1, 6) for _ in texts]  # where the keyword fits
    all_labels = [label for labels in queries.values() for label in labels]
    for query, fitting in queries.items():
        demand = random.Random(query).paretovariate(1.2)  # few queries are frequent
        for day in range(days):
            chance = random.Random(f"{query} {day}")
            if chance.random() < math.exp(-demand / 12):
                continue
            spelling = chance.choice(SPELLINGS)(query)
            for label in shown_keywords(chance, fitting, all_labels):
                impressions = 1 + int(20 * demand * chance.random())
                rate = click_rates[label] if label in fitting else CTR_OF_OTHERS
                clicks = sum(chance.random() < rate for _ in range(impressions))
                log.rows[day].append([spelling, label, texts[label], MARKETS[label % 4], impressions, clicks])
                log.days[label].add(day)
    return log


def shown_keywords(chance: random.Random, fitting: list[int], all_labels: list[int]) -> Iterator[int]:
    """Yield some keywords that fit a query, then some others, which are often popular ones."""
    yield from chance.sample(fitting, min(len(fitting), FITTING))
    others = chance.choices(all_labels, k=OTHERS)
    yield from (label for label in dict.fromkeys(others) if label not in fitting)


def rename(log: Log, texts: list[str]) -> int:
    """Write ids and dates, and another text of some keywords before the day of their rename; return how many."""
    chance = random.Random("renames")
    days_of_week = {label: sorted(days - set(range(WEEK, len(log.rows)))) for label, days in sorted(log.days.items())}
    number = round(RENAMED * sum(map(bool, days_of_week.values())))
    candidates = [label for label, days in days_of_week.items() if len(days) > 1]
    renamed = chance.sample(candidates, min(len(candidates), number))
    first_day = {label: chance.choice(days_of_week[label][1:]) for label in renamed}
    for day, rows in enumerate(log.rows):
        for row in rows:
            label = row[1]
            if day < first_day.get(label, 0):
                row[2] = f"{texts[label]} icon"
            row[1] = f"kw-{label + 1}"
            row.append(FIRST_DAY + timedelta(days=day))
    return len(renamed)


def write(path: Path, rows: list[list[object]]) -> None:
    """Write the rows of a day, some of them twice and some followed by a blank line, and print their number."""
    chance, text = random.Random(path.name), io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    count = 0
    for row in rows:
        lines = [row, row] if chance.random() < REPEATED else [row]
        lines += [[]] if chance.random() < BLANK else []
        table.writerows(lines)
        count += len(lines)
    path.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))
    print(f"{path}: {count:,} rows")


if __name__ == "__main__":
    main()
