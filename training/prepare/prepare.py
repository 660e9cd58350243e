"""Turn a source into a prepared dataset: find the files, read them, assemble the tables, write them."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from retrieval.errors import DatasetError
from retrieval.query_text import QUERY_IDENTITY
from retrieval.tables.account import RowAccount
from retrieval.tables.notes import Notes
from retrieval.tables.table import Table
from training.data.dataset import Dataset, DatasetMeta
from training.prepare.assemble import Assembled, assemble
from training.prepare.bad_rows import MAX_LISTED, BadRows, escape_surrogates, escaped_names
from training.prepare.clicks.reader import LogReader, log_database
from training.prepare.inputs import SourceFiles, find_source_files, recorded_settings
from training.prepare.progress_bar import ProgressBar
from training.prepare.settings import PrepareSettings
from training.prepare.source_data import SourceData
from training.prepare.sources.columns import choose_columns, label_form
from training.prepare.sources.label_table import SourceLabels, read_label_table
from training.prepare.sources.lf_source import LfReader
from training.prepare.sources.list_source import OPTIONAL_COLUMNS, ListReader
from training.prepare.writing import refuse_to_overwrite, write_dataset

__all__ = ["PrepareSettings", "prepare"]


@dataclass
class _Read:
    """A source that was read, with the counts of its rows and what a click log adds to dataset.json."""

    data: SourceData
    read: int
    skipped: Counter[str]
    label_read: int = 0
    label_skipped: Counter[str] = field(default_factory=Counter)
    log_facts: dict[str, Any] = field(default_factory=dict)  # fields of DatasetMeta
    rename_lines: list[str] = field(default_factory=list)
    detected: dict[str, str] = field(default_factory=dict)


def prepare(
    source: Path | str, out: Path, settings: PrepareSettings, *, labels: Path | str | None = None,
    name: str | None = None, force: bool = False, cache: Path | None = None,
) -> tuple[Dataset, bool]:  # fmt: skip
    """Write the dataset of `source` to `out`; also return whether it was written, False if `out` is up to date.

    source: a file, folder, pattern or URL. cache: folder that keeps the aggregated parts of a click log for the next
    run. Raises DatasetError, and leaves `out` unchanged, for an unusable source, for bad rows unless they are skipped,
    and if `out` contains something else.
    """
    files = find_source_files(str(source), None if labels is None else str(labels), settings)
    name = escape_surrogates(name or files.name)
    recorded = recorded_settings(settings, files)
    if (dataset := up_to_date(out, name, recorded)) is not None:
        return dataset, False
    refuse_to_overwrite(out, force)
    bad_rows, notes = BadRows(skip=settings.skip_bad_rows), Notes()
    with ProgressBar(files.size) as progress:
        read = _read(files, settings, out, cache, bad_rows, notes, progress)
        bad_rows.raise_if_any(files.source)
        progress.describe("checking and writing")
        assembled = assemble(
            read.data, settings.test, settings.validation, settings.min_label_count, notes, read.skipped
        )
        read.label_skipped["rare_label"] += read.data.listed - assembled.listed
        accounts = _accounts(files.source, read, assembled)
        require_training_rows(assembled.splits, files.source, accounts["rows"])
        messages = [escape_surrogates(message) for message in bad_rows.messages]
        meta = DatasetMeta(
            name=name, source=escape_surrogates(Path(files.source).name or files.name), settings=recorded,
            accounts=accounts,
            notes=escaped_names(notes.counts()), skipped=bad_rows.total, skipped_first=tuple(messages[:MAX_LISTED]),
            query_identity=QUERY_IDENTITY, detected=read.detected,
            excluded_may_be_true=read.data.excluded_may_be_true, **read.log_facts,
        )  # fmt: skip
        dataset = write_dataset(
            out, assembled.labels, assembled.splits, meta, exposures=assembled.exposures, replace=force,
            skipped=messages, renames=read.rename_lines,
        )  # fmt: skip
        return dataset, True


def _read(
    files: SourceFiles, settings: PrepareSettings, out: Path, cache: Path | None, bad_rows: BadRows, notes: Notes,
    progress: ProgressBar,
) -> _Read:  # fmt: skip
    if files.table is None:
        reader = LfReader(settings.text, settings.max_characters, bad_rows, notes, progress.part())
        data, label_rows, rows = reader.read(dict(files.lf_parts))
        skipped = Counter(blank_line=sum(file.blank for file in rows), bad_row=sum(file.bad for file in rows))
        label_skipped = Counter(blank_line=label_rows.blank, bad_row=label_rows.bad)
        return _Read(data, sum(file.read for file in rows), skipped, label_rows.read, label_skipped)
    labels = SourceLabels()
    if files.labels is not None:
        key, text = settings.label_key, settings.label_text
        labels = read_label_table(files.labels, key, text, settings.max_characters, bad_rows, notes, progress.part())
        bad_rows.raise_if_any(str(files.labels.path))  # now, since each click on a bad label would be a bad row too
    read = _read_table(files.table, settings, out, cache, labels, bad_rows, notes, progress)
    read.detected |= _detected_format(files.table)
    read.label_read, read.label_skipped = labels.read, Counter(labels.skipped)
    return read


def _read_table(
    table: Table, settings: PrepareSettings, out: Path, cache: Path | None, labels: SourceLabels, bad_rows: BadRows,
    notes: Notes, progress: ProgressBar,
) -> _Read:  # fmt: skip
    label, lists = label_form(table, settings)
    columns = choose_columns(table, settings, label, lists=lists)
    if lists:
        reader = ListReader(columns, settings, labels, bad_rows)
        data = reader.read_all(table, progress.part(), notes)
        notes.update(table.notes())
        for part in table.parts:
            notes.update({"unused_columns": part.unused})
        _note_unused(table, {*columns.named().values(), *OPTIONAL_COLUMNS}, reader.read, notes)
        return _Read(data, reader.read, reader.skipped, detected=columns.detected())
    with log_database(out) as (connection, temporary):
        log = LogReader(connection, settings, columns, labels, notes, bad_rows)
        result = log.read(table, cache or temporary, progress, cached=cache is not None)
    _note_unused(table, set(columns.named().values()), result.read, notes)
    facts = {
        "days": result.days, "period": result.period, "examination": result.examination, "renames": len(result.renamed),
        "renames_first": result.renamed[:MAX_LISTED],
    }  # fmt: skip
    return _Read(
        result.data, result.read, result.skipped, log_facts=facts, rename_lines=result.rename_lines,
        detected=columns.detected(),
    )  # fmt: skip


def _detected_format(table: Table) -> dict[str, str]:
    """Return the kind of the files, and the separator and encoding of text files."""
    files = f"{len(table.parts)} × {table.kind}" if len(table.parts) > 1 else table.kind
    layouts = ", ".join(layout for layout in table.layouts) if len(table.layouts) <= MAX_LISTED else "several"
    return {"files": files} | ({"layout": layouts} if layouts else {})


def _note_unused(table: Table, used: set[str], rows: int, notes: Notes) -> None:
    """Count the rows with a column that is not used. Click logs in JSON Lines have their counts with the blocks."""
    for name in table.names if table.has_header else []:
        if name not in used and name not in table.path_columns:
            notes.add("unused_columns", rows, name)


def _accounts(source: str, read: _Read, assembled: Assembled) -> dict[Literal["rows", "labels"], RowAccount]:
    """Return the account of the source, and of the label table if there is one. Raises InternalError."""
    account = RowAccount(read=read.read, written=assembled.written, skipped=_nonzero(read.skipped))
    accounts: dict[Literal["rows", "labels"], RowAccount] = {"rows": account.check(source)}
    if read.label_read:
        skipped = _nonzero(read.label_skipped)
        account = RowAccount(read=read.label_read, written=assembled.listed, skipped=skipped)
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


def require_training_rows(splits: dict[Any, Any], source: str, account: RowAccount) -> None:
    """Raise DatasetError if there is no training row."""
    if splits["train"].num_rows == 0:
        reasons = "".join(f"; {count:,} {reason}" for count, reason in account.lines())
        raise DatasetError(
            f"{source} has no training row left: {account.sentence('written')}{reasons}. "
            "Add rows, or lower --test, --validation, --min-clicks or --min-label-count."
        )
