"""Write and prepare small click logs."""

import gzip
import random
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from training.data import Dataset
from training.prepare.prepare import prepare
from training.prepare.settings import PrepareSettings

FIRST = date(2026, 9, 1)


def written(path: Path, content: str) -> Path:
    """Write a file and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def prepared(source: Path, **choices: Any) -> Dataset:
    """Prepare a source, by default without test and validation rows."""
    settings = PrepareSettings(**{"test": 0.0, "validation": 0.0, **choices})
    return prepare(source, source.parent / f"out-{source.stem}", settings, force=True)[0]


def log_of_days(
    folder: Path, days: int, *, queries: int = 60, ending: str = "csv", seed: int = 0, files: int = 1
) -> list[Path]:
    """Write a log of some days, each in some files: four labels per query, with renames, zero clicks and spellings."""
    paths = []
    for day in range(days):
        random_day = random.Random(f"{seed} {day}")
        lines = ["query,label,label_text,market,impressions,clicks,date"]
        for _ in range(400):
            query, label = random_day.randrange(queries), random_day.randrange(4)
            text = f"keyword {query} {label}" + (" new" if day >= 3 and query % 20 == 0 else "")
            spelling = random_day.choice(["query {}", "Query {}", "QUERY  {}"]).format(query)
            clicks = random_day.choice([0, 0, 1, 2, 9])
            day_text = (FIRST + timedelta(days=day)).isoformat()
            lines.append(f"{spelling},k{query}-{label},{text},m{label},{clicks + 5},{clicks},{day_text}")
        for number in range(files):
            path = folder / f"log-{day:02}-{number}.{ending}"
            path.parent.mkdir(exist_ok=True)
            rows = lines[1 + 400 * number // files : 1 + 400 * (number + 1) // files]
            content = ("\n".join([lines[0], *rows]) + "\n").encode()
            path.write_bytes(gzip.compress(content, mtime=0) if ending.endswith("gz") else content)
            paths.append(path)
    return paths
