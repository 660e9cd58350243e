"""`diptych prepare` on click logs of several days: time splits, renames, files and blocks, and the cache."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval.errors import DatasetError
from tests.support.click_logs import log_of_days, prepared, written
from training.data import SPLITS, Dataset
from training.prepare.prepare import prepare
from training.prepare.settings import PrepareSettings


def test_test_is_later_than_validation_and_validation_later_than_training(tmp_path: Path) -> None:
    """A model would be tested on the days that it was trained on."""
    log_of_days(tmp_path / "log", 20)
    dataset = prepared(tmp_path / "log", test_days=3, validation=0.1)
    first = {name: dataset.split(name).first_day_V for name in SPLITS}
    last = {name: dataset.split(name).last_day_V for name in SPLITS}
    assert all(len(dataset.split(name)) for name in SPLITS)
    assert min(first["test"]) == np.datetime64("2026-09-18")
    assert min(first["validation"]) >= np.datetime64("2026-09-17")
    assert max(last["validation"]) < np.datetime64("2026-09-18")
    assert max(last["train"]) < np.datetime64("2026-09-17")  # all queries of the day before test are validation queries
    period = dataset.meta.period
    assert period is not None
    assert (period.first_day, period.last_day) == ("2026-09-01", "2026-09-20")
    assert (period.validation_from, period.test_from) == ("2026-09-17", "2026-09-18")
    same = prepared(tmp_path / "log", test_from="2026-09-18", validation=0.1)
    assert same.fingerprint == dataset.fingerprint
    assert len(dataset.meta.days) == 20
    assert sum(day.rows for day in dataset.meta.days.values()) == dataset.meta.accounts["rows"].read == 8000
    with pytest.raises(DatasetError, match="The test period would begin on 2026-09-01, but the log has the days"):
        prepared(tmp_path / "log", test_days=20)
    with pytest.raises(DatasetError, match="--test-days needs a column with dates"):
        prepared(tmp_path / "log", test_days=2, date_column="none")


def test_the_latest_text_of_a_label_wins_and_renames_are_listed(tmp_path: Path) -> None:
    """A renamed keyword would keep the text of the first day, or the rename would go unnoticed."""
    log_of_days(tmp_path / "log", 5, queries=40)
    dataset = prepared(tmp_path / "log", attribute_column=("market",))
    texts = dict(zip(dataset.label_table["id"].to_pylist(), dataset.label_texts, strict=True))
    assert texts["k20-1"] == "keyword 20 1 new"
    assert texts["k21-1"] == "keyword 21 1"
    assert dataset.meta.renames == 8
    lines = (dataset.folder / "renamed-labels.txt").read_text().splitlines()
    assert len(lines) == 8
    assert "label k20-1: 'keyword 20 1' (last on 2026-09-03) is now 'keyword 20 1 new'" in lines
    assert dataset.label_table["market"].to_pylist()[:2] == [
        f"m{identity[-1]}" for identity in dataset.label_table["id"].to_pylist()[:2]
    ]
    assert set(dataset.label_days) == {"first_seen", "last_seen"}
    labels = written(tmp_path / "labels.csv", "id,text,market\nk20-1,from the table,\nk99-9,unseen,x\n")
    settings = PrepareSettings(test=0, validation=0, attribute_column=("market",))
    other, _ = prepare(tmp_path / "log", tmp_path / "other", settings, labels=labels)
    rows = {row["id"]: row for row in other.label_table.to_pylist()}
    assert rows["k20-1"]["text"] == "from the table"
    assert rows["k20-1"]["market"] == "m1"  # the table has none
    assert rows["k99-9"] == {"id": "k99-9", "text": "unseen", "market": "x"}
    assert rows["k20-2"]["text"] == "keyword 20 2 new"


def content(dataset: Dataset) -> dict[str, bytes]:
    """Return the bytes of all files of a dataset."""
    return {path.name: path.read_bytes() for path in sorted(dataset.folder.iterdir())}


@pytest.mark.parametrize(("ending", "files"), [("csv", 1), ("csv.gz", 3)])
def test_a_rolling_window_is_the_same_as_everything_at_once(tmp_path: Path, ending: str, files: int) -> None:
    """A dataset would depend on which days had been read before."""
    paths = log_of_days(tmp_path / "all", 8, ending=ending, files=files)
    settings = PrepareSettings(test_days=1, half_life_days=3)
    cache, window = tmp_path / "cache", tmp_path / "log"
    window.mkdir()
    for first in range(3):
        for path in window.iterdir():
            path.unlink()
        for path in paths[first * files : (first + 6) * files]:
            (window / path.name).symlink_to(path)
        rolling, _ = prepare(window, tmp_path / "rolling", settings, cache=cache, force=True)
        whole, _ = prepare(window, tmp_path / f"whole-{first}" / "rolling", settings)
        assert content(rolling) == content(whole)
    assert len(list(cache.glob("*.cells.parquet"))) == 8 * files + (8 if files > 1 else 0)


@pytest.mark.parametrize("options", [{}, {"position_column": "none"}, {"source_column": "market", "max_share": 0.5}])
def test_the_division_into_files_and_blocks_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """A log in one file would give another dataset than the same rows in many files."""
    paths = log_of_days(tmp_path / "days", 7, files=2)
    header, *_ = paths[0].read_text().splitlines()
    rows = [line for path in paths for line in path.read_text().splitlines()[1:]]
    written(tmp_path / "log.csv", "\n".join([header, *rows]) + "\n")
    settings = PrepareSettings(test_days=2, half_life_days=5, **options)
    by_day, _ = prepare(tmp_path / "days", tmp_path / "by-day", settings)
    whole, _ = prepare(tmp_path / "log.csv", tmp_path / "whole", settings)
    monkeypatch.setattr("training.prepare.clicks.parts.ROWS_PER_BLOCK", 1)
    monkeypatch.setattr("training.prepare.clicks.blocks.BLOCKS_AT_ONCE", 2)
    monkeypatch.setattr("retrieval.tables.lines.BLOCK", 4_000)
    in_blocks, _ = prepare(tmp_path / "log.csv", tmp_path / "in-blocks", settings)
    assert by_day.fingerprint == whole.fingerprint == in_blocks.fingerprint
    assert by_day.meta.days == whole.meta.days == in_blocks.meta.days
    assert by_day.meta.renames == whole.meta.renames == in_blocks.meta.renames > 0


def test_only_new_files_are_read(tmp_path: Path) -> None:
    """Each day, the whole window would be read again."""
    log_of_days(tmp_path / "log", 3)
    cache = tmp_path / "cache"
    first, _ = prepare(tmp_path / "log", tmp_path / "one", PrepareSettings(), cache=cache)
    before = {path.name: path.stat().st_ino for path in cache.glob("*.parquet")}
    log_of_days(tmp_path / "log", 4)
    prepare(tmp_path / "log", tmp_path / "two", PrepareSettings(), cache=cache)
    after = {path.name: path.stat().st_ino for path in cache.glob("*.parquet")}
    assert before.items() <= after.items()
    assert len([name for name in after if "cells" in name]) == 4
    again, _ = prepare(tmp_path / "log", tmp_path / "three", PrepareSettings(min_clicks=2), cache=cache)
    assert {path.name: path.stat().st_ino for path in cache.glob("*.parquet")} == after
    assert again.meta.accounts["rows"].read == 1600 > first.meta.accounts["rows"].read


@pytest.mark.parametrize("file", ["spellings", "labels", "cells"])
def test_a_damaged_file_of_the_cache_is_named(tmp_path: Path, file: str) -> None:
    """A full disk or a copied cache would end in a traceback, or in a wrong dataset."""
    log_of_days(tmp_path / "log", 3)
    prepare(tmp_path / "log", tmp_path / "one", PrepareSettings(), cache=tmp_path / "cache")
    for path in (tmp_path / "cache").glob(f"*.{file}.parquet"):
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DatasetError, match=r"cannot be (read|aggregated)"):
        prepare(tmp_path / "log", tmp_path / "two", PrepareSettings(), cache=tmp_path / "cache")
    assert not (tmp_path / "two").exists()
