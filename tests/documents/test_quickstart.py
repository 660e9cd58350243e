"""The quick start: a messy click log becomes a searchable bundle with a time split in three commands, without scripts.

The page runs on the log of 300 queries; its dataset is compared with values computed here from the rows of the log. The
printed summary of `diptych prepare` is compared for the whole log.
"""

import csv
import gzip
import re
import shlex
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from retrieval.open import open_bundle
from tests.documents.conftest import Preparer
from tests.support.pages import ROOT, blocks
from tests.support.programs.page_runner import run_page
from training.data.dataset import Dataset, SplitName

PAGE = ROOT / "docs" / "quickstart.md"
Pair = tuple[str, str]  # query in lower case with single spaces, and keyword id


@dataclass
class Log:
    """Sums over the rows of a log."""

    spellings: set[str] = field(default_factory=set)
    texts: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # per keyword, in time order
    clicks: Counter[tuple[str, Pair]] = field(default_factory=Counter)  # per day and pair; pairs without clicks too
    rows: int = 0
    blank: int = 0

    @property
    def days(self) -> list[str]:
        return sorted({day for day, _ in self.clicks})


def read_log(folder: Path) -> Log:
    """Read the log as a reader would by hand."""
    log = Log()
    for path in sorted(folder.glob("*.csv.gz"))[:7]:  # the page adds an eighth day at its end
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            lines = list(csv.reader(file))
        log.rows += len(lines) - 1
        for line in lines[1:]:
            if not line:
                log.blank += 1
                continue
            query, keyword, text, _, _, clicks, day = line
            assert day == path.name[:10]
            log.spellings.add(" ".join(query.split()))
            log.texts[keyword].append(text)
            log.clicks[day, (" ".join(query.lower().split()), keyword)] += int(clicks)
    return log


def pairs(dataset: Dataset, name: SplitName) -> dict[Pair, float]:
    """Return the weight of each positive of a split."""
    split, ids = dataset.split(name), dataset.label_table["id"].to_pylist()
    assert split.weights_V is not None
    rows = np.array([" ".join(text.lower().split()) for text in split.texts], object)[split.labels.row_of_value]
    labels = [ids[label] for label in split.labels.values]
    return {(str(query), label): float(w) for query, label, w in zip(rows, labels, split.weights_V, strict=True)}


@pytest.fixture(scope="module")
def followed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Follow the page; return the folder with its results."""
    folder = Preparer(request, tmp_path_factory.mktemp("quickstart") / "scratch")("repository")
    run_page(blocks(PAGE), folder)
    return folder


def test_it_needs_three_commands_and_no_script() -> None:
    """If this failed, a reader would need a program besides `diptych` to get from the log to a bundle."""
    lines = [
        line
        for block in blocks(PAGE)
        if block.language == "sh" and not block.reason
        for line in block.text.replace("\\\n", " ").splitlines()
    ]
    assert lines[0] == "python examples/clicks/make.py ."  # a stand-in for the reader's log
    assert [shlex.split(line)[:2] for line in lines[1:5]] == [
        ["diptych", "prepare"],
        ["diptych", "train"],
        ["diptych", "export"],
        ["diptych", "search"],
    ]
    others = {shlex.split(line)[0] for line in lines[5:] if line}
    assert others <= {"diptych", "curl", "python"}
    assert [line for line in lines[5:] if line.startswith("python")] == ["python examples/clicks/make.py . --days 8"]


def test_the_bundle_is_searchable(followed: Path) -> None:
    """If this failed, the three commands would end without answers."""
    retriever = open_bundle(str(followed / "store"))
    (hits,) = retriever.search(["Credit  Card"], k=5, filter={"market": ["uk"]})
    assert len(hits) == 5
    assert {hit.attributes["market"] for hit in hits} == {"uk"}


def test_the_last_day_is_the_test(followed: Path) -> None:
    """If this failed, the model would be tested on days that it was trained on, or clicks would be lost."""
    log, dataset = read_log(followed / "log"), Dataset.open(followed / "dataset")
    *earlier, validation_day, test_day = log.days
    period = dataset.meta.period
    assert period is not None
    assert (period.validation_from, period.test_from) == (validation_day, test_day)
    for name, days in {"train": earlier, "validation": [validation_day], "test": [test_day]}.items():
        clicks = Counter[Pair]()
        for (day, pair), count in log.clicks.items():
            clicks[pair] += count if day in days else 0
        assert pairs(dataset, name) == {pair: count for pair, count in clicks.items() if count}  # type: ignore[arg-type]


def test_spellings_of_a_query_are_one_query(followed: Path) -> None:
    """If this failed, clicks of one query would be spread over several rows, and test queries known from training."""
    log, dataset = read_log(followed / "log"), Dataset.open(followed / "dataset")
    queries = {query for _, (query, _) in log.clicks}
    assert len(log.spellings) - len(queries) == dataset.meta.notes["merged_spellings"] > 0
    for name in ("train", "validation", "test"):
        texts = [" ".join(text.lower().split()) for text in dataset.split(name).texts]
        assert len(set(texts)) == len(texts)


def test_the_latest_text_of_a_renamed_keyword_wins(followed: Path) -> None:
    """If this failed, a keyword would keep the text of the first day, or its rename would not be reported."""
    log, dataset = read_log(followed / "log"), Dataset.open(followed / "dataset")
    texts = dict(zip(dataset.label_table["id"].to_pylist(), dataset.label_texts, strict=True))
    assert texts == {keyword: in_order[-1] for keyword, in_order in log.texts.items()}
    renamed = sum(len(set(in_order)) > 1 for in_order in log.texts.values())
    assert dataset.meta.renames == renamed >= 0.04 * len(log.texts)
    assert len((dataset.folder / "renamed-labels.txt").read_text().splitlines()) == renamed


def test_pairs_without_clicks_are_exposures(followed: Path) -> None:
    """If this failed, keywords that were shown and never clicked would be learned as right, or be lost."""
    log, dataset = read_log(followed / "log"), Dataset.open(followed / "dataset")
    clicked = {pair for (_, pair), count in log.clicks.items() if count}
    never = {pair for _, pair in log.clicks} - clicked
    positives = {pair for name in ("train", "validation", "test") for pair in pairs(dataset, name)}  # type: ignore[arg-type]
    assert positives == clicked
    table, ids = dataset.exposures(), dataset.label_table["id"].to_pylist()
    assert table is not None
    exposed = {(" ".join(row["query"].lower().split()), ids[row["label"]]) for row in table.to_pylist()}
    assert never <= exposed
    assert len(never) > len(clicked) / 2


def test_each_row_is_counted(followed: Path) -> None:
    """If this failed, rows of the log would be lost without a word."""
    log, dataset = read_log(followed / "log"), Dataset.open(followed / "dataset")
    account = dataset.meta.accounts["rows"]
    assert (account.read, account.skipped.get("blank_line", 0)) == (log.rows, log.blank)
    assert account.skipped.keys() <= {"blank_line", "repeated_pair", "exposure"}
    assert account.written == sum(split.positives for split in dataset.meta.splits.values())


def test_the_page_shows_what_prepare_prints(tmp_path: Path) -> None:
    """If this failed, a reader would see another summary of the example log than the page."""
    (make, prepare) = [block for block in blocks(PAGE) if block.language == "sh" and not block.reason][:2]
    shown = [block.text for block in blocks(PAGE) if block.language == "text"][:2]
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for block, text in zip((make, prepare), shown, strict=True):
        words = shlex.split(block.text.replace("\\\n", " "))
        program = [sys.executable, "-m", "diptych"] if words[0] == "diptych" else [sys.executable]
        done = subprocess.run(
            [*program, *words[1:]],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "COLUMNS": "100", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        printed = [line.rstrip() for line in done.stdout.splitlines()]
        assert printed == [re.sub(r"\s+$", "", line) for line in text.splitlines()]
