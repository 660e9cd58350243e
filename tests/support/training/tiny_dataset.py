"""A dataset of seven queries, for tests of the benchmarks."""

import json
from pathlib import Path

from training.data.dataset import Dataset
from training.prepare.prepare import prepare
from training.prepare.settings import PrepareSettings

ROWS = [
    {"query": "cheap running shoes", "labels": ["running shoes", "sneakers"], "split": "train"},
    {"query": "trail running", "labels": ["running shoes", "trail shoes"], "split": "train"},
    {"query": "leather office shoes", "labels": ["oxfords"], "split": "train"},
    {"query": "rain coat", "labels": ["raincoats"], "split": "train"},
    {"query": "warm winter coat", "labels": ["parkas"], "split": "validation"},
    {"query": "running", "labels": ["running shoes", "sneakers"], "exclude": ["sneakers"], "split": "test"},
    {"query": "winter coats", "labels": ["parkas"], "split": "test"},
]


def make_tiny(folder: Path) -> Dataset:
    """Prepare ROWS in `folder` / dataset, from `folder` / tiny.jsonl."""
    source = folder / "tiny.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return prepare(source, folder / "dataset", PrepareSettings())[0]
