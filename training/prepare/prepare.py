"""Turn a source into a prepared dataset: find the files, read them, assemble the tables, write them."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from retrieval.errors import DatasetError
from retrieval.tables.account import RowAccount
from retrieval.tables.delimited import Layout
from retrieval.tables.notes import Notes
from retrieval.tables.table import Table
from training.data.dataset import Dataset, DatasetMeta
from training.prepare.assemble import Assembled, assemble
from training.prepare.input_rows import MAX_LISTED, BadRowLog, InputRows
from training.prepare.inputs import (
    PrepareSettings,
    SourceFiles,
    escape_surrogates,
    find_source_files,
    recorded_settings,
)
from training.prepare.label_table import SourceLabels, read_label_table
from training.prepare.lf_source import read_lf
from training.prepare.progress_bar import ProgressBar
from training.prepare.source_data import SourceData
from training.prepare.table_source import ColumnNames, TableReader, read_table_source
from training.prepare.writing import refuse_to_overwrite, write_dataset

__all__ = ["PrepareSettings", "prepare"]


def prepare(
    source: Path, out: Path, settings: PrepareSettings, *, labels: Path | None = None, name: str | None = None,
    force: bool = False,
) -> tuple[Dataset, bool]:  # fmt: skip
    """Write the dataset of `source` to `out`; also return whether it was written, False if `out` is up to date.

    Raises DatasetError, and leaves `out` unchanged, for an unusable source, for bad rows unless they are skipped, and
    if `out` contains something else.
    """
    files = find_source_files(source, labels, settings)
    name = escape_surrogates(name or files.name)
    recorded = recorded_settings(settings, files)
    if (dataset := up_to_date(out, name, recorded)) is not None:
        return dataset, False
    refuse_to_overwrite(out, force)
    bad_rows, notes = BadRowLog(skip=settings.skip_bad_rows), Notes()
    rows, label_rows = InputRows(bad_rows), InputRows(bad_rows)
    with ProgressBar(sum(path.stat().st_size for path in files.files.values())) as progress:
        data = _read(files, settings, rows, label_rows, notes, progress)
        bad_rows.raise_if_any(str(source))
        progress.at("checking and writing", 0)
        assembled = assemble(data, settings.test, settings.validation, settings.min_label_count, notes, rows.skipped)
        label_rows.skipped["rare_label"] += data.listed - assembled.listed
        accounts = _accounts(source, rows, label_rows, assembled)
        require_training_rows(assembled.splits, source, accounts["rows"])
        messages = [escape_surrogates(message) for message in bad_rows.messages]
        meta = DatasetMeta(
            name=name, source=escape_surrogates(source.resolve().name), settings=recorded, accounts=accounts,
            notes=_escape_names(notes.counts()), skipped=bad_rows.total, skipped_first=tuple(messages[:MAX_LISTED]),
        )  # fmt: skip
        return write_dataset(out, assembled.labels, assembled.splits, meta, replace=force, skipped=messages), True


def _escape_names(counts: Mapping[str, int | dict[str, int]]) -> dict[str, int | dict[str, int]]:
    return {
        note: count if isinstance(count, int) else {escape_surrogates(name): number for name, number in count.items()}
        for note, count in counts.items()
    }


def _accounts(
    source: Path, rows: InputRows, label_rows: InputRows, assembled: Assembled
) -> dict[Literal["rows", "labels"], RowAccount]:
    """Return the account of the source, and of the label table if there is one. Raises InternalError."""
    account = RowAccount(read=rows.read, written=assembled.written, skipped=_nonzero(rows.skipped))
    accounts: dict[Literal["rows", "labels"], RowAccount] = {"rows": account.check(str(source))}
    if label_rows.read:
        skipped = _nonzero(label_rows.skipped)
        account = RowAccount(read=label_rows.read, written=assembled.listed, skipped=skipped)
        accounts["labels"] = account.check(f"labels of {source}")
    return accounts


def _nonzero(counts: Counter[str]) -> dict[str, int]:
    return {reason: count for reason, count in counts.items() if count}


def up_to_date(out: Path, name: str, recorded: dict[str, Any]) -> Dataset | None:
    """Return the dataset in `out` if it was made from the same files and settings, and is unchanged since."""
    if not (out / "dataset.json").is_file():
        return None
    try:
        dataset = Dataset.open(out)
        same = (dataset.meta.name, dataset.meta.settings) == (name, recorded) and dataset.fingerprint != ""
    except DatasetError:  # damaged, or of another version; --force replaces it
        return None
    return dataset if same else None


def _read(
    files: SourceFiles, settings: PrepareSettings, rows: InputRows, label_rows: InputRows, notes: Notes,
    progress: ProgressBar,
) -> SourceData:  # fmt: skip
    limit = settings.max_characters
    if files.is_lf:
        return read_lf(files.parts, settings.text, limit, rows, label_rows, notes, progress)
    labels = SourceLabels()
    table = Table(files.path, Layout.of(settings.separator, settings.quoting), without=files.labels)
    if files.labels is not None:
        key, text = settings.label_key, settings.label_text
        labels = read_label_table(files.labels, key, text, limit, label_rows, notes, progress)
        # now, since each click on a bad label would be a bad row too
        label_rows.bad_rows.raise_if_any(str(files.labels))
    columns = ColumnNames(settings.query_column, settings.label_column, settings.split_column, settings.count_column)
    reader = TableReader(columns, limit, labels, notes, rows, settings.min_pair_count)
    return read_table_source(table, reader, progress)


def require_training_rows(splits: dict[Any, Any], source: Path, account: RowAccount) -> None:
    """Raise DatasetError if there is no training row."""
    if splits["train"].num_rows == 0:
        reasons = "".join(f"; {count:,} {reason}" for count, reason in account.lines())
        raise DatasetError(
            f"{source} has no training row left: {account.sentence('written')}{reasons}. "
            "Add rows, or lower --test, --validation, --min-count or --min-label-count."
        )
