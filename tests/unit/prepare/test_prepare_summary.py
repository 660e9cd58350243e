"""The end of `diptych prepare`: the summary in the terminal, and the page in the dataset's folder."""

import io
from pathlib import Path

import pytest

import diptych
from retrieval.system.console import Console
from retrieval.tables.account import RowAccount
from tests.unit.prepare.test_dataset_page import HOSTILE, META, log
from training.data.dataset import Dataset, DatasetMeta
from training.data.meta import LabelRename
from training.prepare.settings import PrepareSettings
from training.prepare.summary import dataset_texts, show

SKIPPED = {"exposure": 50_000, "repeated_pair": 12_000, "bad_row": 42}
LOG = META.model_copy(
    update={
        "name": "ads", "source": "log", "skipped": 42, "settings": PrepareSettings(test=0.2).model_dump(mode="json"),
        "skipped_first": tuple(f"log.csv line {line}: clicks is 'n/a', not an integer." for line in range(20)),
        "accounts": {
            "rows": RowAccount(read=70_000, written=7_958, skipped=SKIPPED),
            "labels": RowAccount(read=5, written=4, skipped={"rare_label": 1}),
        },
        "notes": {"merged_spellings": 1384, "unused_columns": {"market": 70_000}, "unread_files": {"README.md": 1}},
        "renames_first": (LabelRename(id="k1", before="shoes", now="running shoes"),),
        "detected": {"query_column": "query", "label_column": "keyword_id", "separator": "tab", "encoding": "UTF-8"},
    }
)  # fmt: skip


def printed(dataset: Dataset, *, written: bool = True) -> str:
    """Return the summary as a file of the output would have it: 80 columns, no colours."""
    console = Console(file=io.StringIO(), width=80, markup=False)
    show(dataset, console, written=written)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> str:
    return printed(log(tmp_path_factory.mktemp("log") / "dataset", meta=LOG))


def test_the_summary_of_a_log_is_short(summary: str) -> None:
    """If this failed, a summary would not fit one screen, and the warning at its top would be out of sight."""
    assert len(summary.splitlines()) <= 45
    for line in (
        "warning: 2 days have no rows: 2026-09-02, 2026-09-03. Check that the source has all files",
        "warning: validation has no rows. Training needs it to choose the best epoch: raise --validation or add rows.",
        "70,000 rows read = 7,958 written + 62,042 skipped",
        "        50,000  with a pair that was shown and not clicked, stored in exposures.parquet",
        "label table: 5 rows read = 4 labels + 1 skipped",
        "42 bad rows skipped, listed in",
        "4 labels with market",
        '7 of them were renamed and have their latest text, such as "shoes" → "running shoes"; see renamed-labels.txt',
        "3 exposures (shown, not clicked) with 55 impressions",
        "         1,384  spellings of a query merged with the most frequent one (case, spaces, invisible characters)",
        "columns  query: query, label: keyword_id",
        "format   separator: tab, encoding: UTF-8",
    ):
        assert line in summary


def test_tables_of_the_summary_are_aligned(summary: str) -> None:
    """If this failed, a number would be below the wrong heading."""
    cells = [line.split() for line in summary.splitlines()]
    assert ["train", "3", "4", "1.33", "16", "2026-09-01", "2026-09-01"] in cells
    assert ["validation", "0", "0", "0.00", "0", "–", "–"] in cells
    assert ["by", "weight", "80.0", "%", "80.0", "%", "60.0", "%"] in cells
    assert ["each", "pair", "once", "75.0", "%", "50.0", "%", "25.0", "%"] in cells
    assert ["labels", "1", "2", "1", "0", "0", "0"] in cells


def test_each_default_in_force_is_named_once(summary: str) -> None:
    """If this failed, a user would not learn which default decided the splits."""
    assert summary.count("--validation 0.1") == summary.count("--half-life-days none (clicks do not age)") == 1
    assert "--test 0.1" not in summary, "it was set to 0.2"
    assert "--max-characters" not in summary


@pytest.mark.parametrize("changes", [{"settings": {"split_column": "fold"}}, {"detected": {"split_column": "split"}}])
def test_shares_are_not_named_for_a_source_with_splits(tmp_path: Path, changes: dict[str, dict[str, str]]) -> None:
    """If this failed, the summary would name a default that decided nothing."""
    settings = PrepareSettings().model_dump(mode="json") | changes.get("settings", {})
    meta = DatasetMeta(name="log", settings=settings, detected=changes.get("detected", {}))
    assert "--validation 0.1" not in printed(log(tmp_path / "dataset", weighted=False, meta=meta))


def test_settings_have_the_help_text_of_their_option(tmp_path: Path) -> None:
    """If this failed, the page would not explain a setting, or not mark it as changed."""
    settings = {setting.option: setting for setting in dataset_texts(log(tmp_path / "dataset", meta=LOG).meta).settings}
    assert set(settings) == {f"--{name.replace('_', '-')}" for name in PrepareSettings.model_fields}
    assert (settings["--test"].value, settings["--test"].default, settings["--test"].changed) == ("0.2", "0.1", True)
    assert settings["--test"].description == "Share of queries for test, if the source has no splits."
    assert settings["--skip-bad-rows"].value == "false"
    assert settings["--separator"].value == "detected from the header"


def test_hostile_texts_do_not_reach_the_terminal(tmp_path: Path) -> None:
    """If this failed, a column or label text could change the screen of the user."""
    rename = LabelRename(id="a", before=HOSTILE[2], now=HOSTILE[3])
    changes = {"notes": {"unused_columns": {HOSTILE[2]: 3}}, "renames_first": (rename,), "skipped_first": (HOSTILE[2],)}
    summary = printed(log(tmp_path / "dataset", meta=LOG.model_copy(update=changes)))
    assert not set("\u202e\u2066\x1b") & set(summary)
    assert max(map(len, summary.splitlines())) < 300


def test_the_command_writes_the_page_and_writes_a_missing_one_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If this failed, a run that was stopped before the page was written would never get one."""
    source, out = tmp_path / "clicks.csv", tmp_path / "dataset"
    source.write_text("query,label\n" + "".join(f"query {n},label {n % 7}\n" for n in range(200)))
    command = ["prepare", str(source), "--out", str(out)]
    assert diptych.main(command) == 0
    page = out / "dataset.html"
    assert f"all settings: {page}" in "".join(capsys.readouterr().out.split("\n"))
    content = page.read_bytes()
    page.unlink()
    assert diptych.main(command) == 0
    assert "is up to date in" in capsys.readouterr().out
    assert page.read_bytes() == content
    page.write_text("edited")
    assert diptych.main(command) == 0
    assert page.read_text() == "edited", "an existing page of an unchanged dataset is left as it is"
    assert diptych.main([*command, "--test", "0.2", "--force"]) == 0
    assert "0.2" in page.read_text()
