"""The command `diptych prepare`, on the example and on a user's files."""

import json
import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import diptych
from training.data import Dataset
from training.prepare.prepare import prepare
from training.prepare.settings import PrepareSettings
from training.prepare.summary import NOTES

ROOT = Path(__file__).parents[3]
KEYWORDS = ROOT / "examples" / "keywords"
ROWS = [{"query": f"thing {n}", "labels": [f"kind {n % 7}"]} for n in range(200)]


def run(*args: str) -> int:
    """Run `diptych prepare` and return its exit code."""
    try:
        return diptych.main(["prepare", *args])
    except SystemExit as end:
        return int(end.code or 0)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Write a source of 200 queries."""
    path = tmp_path / "things.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


def test_the_example_is_prepared_with_its_own_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If this failed, the quick start would fail at its first step, or test concepts could be in training."""
    assert run(str(KEYWORDS), "--out", str(tmp_path / "d")) == 0
    dataset = Dataset.open(tmp_path / "d")
    table = pq.read_table(KEYWORDS / "keywords.parquet").to_pylist()
    held_out = [row["query"] for row in table if row["split"] == "test"]
    assert dataset.split("test").texts == held_out
    assert sorted(dataset.split("train").texts + dataset.split("validation").texts + held_out) == sorted(
        row["query"] for row in table
    )
    assert dataset.n_labels == 16_480
    printed = capsys.readouterr().out
    assert "dataset 'keywords' written to" in printed
    for figure in ("8,665", "999", "1,054", "16,480", "81  excluded labels removed from the labels of their row"):
        assert figure in printed


def test_a_slice_of_the_example_reads_the_same_as_json_lines(tmp_path: Path) -> None:
    """If this failed, the example's data in two formats would give two datasets."""
    table = pq.read_table(KEYWORDS / "keywords.parquet").slice(0, 500)
    (tmp_path / "a").mkdir()
    pq.write_table(table, tmp_path / "a" / "slice.parquet")
    (tmp_path / "slice.jsonl").write_text("\n".join(map(json.dumps, table.to_pylist())))
    for name, path in {"parquet": tmp_path / "a", "jsonl": tmp_path / "slice.jsonl"}.items():
        assert run(str(path), "--out", str(tmp_path / name)) == 0
    assert Dataset.open(tmp_path / "parquet").fingerprint == Dataset.open(tmp_path / "jsonl").fingerprint


def test_the_same_again_is_up_to_date(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If this failed, a second `make demo` would fail, or prepare the dataset again."""
    command = [str(source), "--out", str(tmp_path / "d")]
    assert run(*command) == 0
    before = (tmp_path / "d" / "train.parquet").stat().st_mtime_ns
    capsys.readouterr()
    assert run(*command) == 0
    assert "dataset 'things' is up to date in" in capsys.readouterr().out
    assert (tmp_path / "d" / "train.parquet").stat().st_mtime_ns == before


@pytest.mark.parametrize("change", ["settings", "source", "damage"])
def test_another_dataset_is_replaced_only_when_forced(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    """If this failed, an old dataset would be replaced without --force, or a damaged one would count as up to date."""
    out = tmp_path / "d"
    command = [str(source), "--out", str(out)]
    assert run(*command) == 0
    if change == "settings":
        command += ["--test", "0.3"]
    elif change == "source":
        source.write_text(json.dumps(ROWS[0]))
        command += ["--test", "0", "--validation", "0"]
    else:
        shutil.copy(out / "test.parquet", out / "train.parquet")
    assert run(*command) == 1
    assert "contains another dataset. Choose another folder, or add --force" in capsys.readouterr().err
    assert run(*command, "--force") == 0
    assert Dataset.open(out).fingerprint


def test_bad_rows_end_with_code_1_and_no_traceback(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If this failed, a script could not detect a failed preparation."""
    with source.open("a") as file:
        file.write('\n{"query": 1, "labels": []}')
    command = [str(source), "--out", str(tmp_path / "d")]
    assert run(*command) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {source} has 1 bad row; nothing was written.")
    assert "things.jsonl line 201: query is 1, not text" in said
    assert run(*command, "--skip-bad-rows") == 0
    assert "1 bad row skipped, listed in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "contains no data file"),
        (["a.csv", "b.parquet"], "contains files of several formats: a.csv, b.parquet. Name one file"),
        (["days/a.csv"], "has data in subfolders (days), which would not be read."),
    ],
)
def test_a_folder_needs_data_files_of_one_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: list[str], said: str
) -> None:
    """If this failed, prepare would read an arbitrary file of several, or lose the values of partitions."""
    for name in [*files, "README.md"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert run(str(tmp_path), "--out", str(tmp_path / "d")) == 1
    assert said in capsys.readouterr().err


def test_a_prepared_dataset_is_no_source(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If this failed, the error for a prepared dataset as source would be about four Parquet files."""
    assert run(str(source), "--out", str(tmp_path / "d")) == 0
    assert run(str(tmp_path / "d"), "--out", str(tmp_path / "e")) == 1
    assert "is already a prepared dataset" in capsys.readouterr().err


def test_validation_takes_no_more_of_a_large_set_than_training_looks_at(tmp_path: Path) -> None:
    """If this failed, a tenth of a large dataset would be neither trained on nor evaluated."""
    source = tmp_path / "clicks.csv"
    source.write_text("query,label\n" + "".join(f"query {n},label {n % 7}\n" for n in range(40_000)))
    counts = prepare(source, tmp_path / "out", PrepareSettings(test=0.0))[0].meta.splits
    assert counts["train"].rows + counts["validation"].rows == 40_000
    assert 1_800 <= counts["validation"].rows <= 2_200


def test_every_note_has_a_text() -> None:
    """If this failed, the summary would print an identifier instead of a sentence."""
    folders = (ROOT / "training" / "prepare", ROOT / "retrieval" / "tables")
    sources = [path.read_text() for folder in folders for path in folder.rglob("*.py")]
    added = {note for source in sources for note in re.findall(r'otes\.add\(\s*"(\w+)"', source)}
    assert len(added) > 15
    assert added == set(NOTES)


def test_names_that_are_not_utf_8_are_recorded_with_escapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If it fails, a name of a file, folder or column that is not UTF-8 ends a long run with a traceback."""
    path, out = tmp_path / "log\udcff.csv", tmp_path / "d\udcff"
    path.write_bytes(b"query,label,x\xea\nred shoes,shoes,\nblue shoes,shoes,\n,shoes,\n")
    command = [str(path), "--out", str(out), "--test", "0", "--skip-bad-rows"]
    assert run(*command) == 0
    meta = json.loads((out / "dataset.json").read_text())
    assert (meta["name"], meta["source"], meta["notes"]) == (
        r"log\udcff",
        r"log\udcff.csv",
        {"unused_columns": {r"x\udcea": 3}},
    )
    assert run(str(path), "--query-column", "x\udcea", "--out", str(tmp_path / "e")) == 1
    assert "has a name that is not UTF-8. Rename it." in capsys.readouterr().err
    assert "log\\udcff.csv line 4" in (out / "skipped-rows.txt").read_text()
    assert Dataset.open(out).split("train").texts
