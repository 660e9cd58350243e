"""A source becomes a prepared dataset: found, read, assembled, written; or left alone when nothing has changed."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from retrieval.errors import DatasetError
from retrieval.tables.account import RowAccount
from retrieval.tables.delimited import Layout, Quoting
from retrieval.tables.files import require_file, stem, table_files
from retrieval.tables.table import Table
from training.data.dataset import Dataset, DatasetMeta
from training.prepare.assemble import Assembled, assemble
from training.prepare.files import Meter, sha256
from training.prepare.intake import Raw
from training.prepare.label_table import Catalogue, read_catalogue
from training.prepare.lf_format import Text, is_lf, lf_files, read_lf
from training.prepare.row_counts import LISTED, InputRows, Problems
from training.prepare.sources import Columns, Reader, read_source
from training.prepare.writing import refuse_to_overwrite, write_dataset

PREPARE_VERSION = 4  # raised when the same source and settings would give another dataset
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=0)]


class PrepareSettings(BaseModel):
    """Every choice of `diptych prepare` that changes what is written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    query_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    count_column: str | None = None
    label_key: str | None = None
    label_text: str | None = None
    text: Text = "title"
    test: Share = 0.1
    validation: Share = 0.1
    min_count: Count | None = None  # None: 1 with a count column, so that pairs with count 0 are left out, else 0
    min_label_count: Count = 0
    separator: str | None = None
    quoting: Quoting = "auto"
    max_characters: Annotated[int, Field(ge=1)] = 1_000_000
    skip_bad_rows: bool = False

    @property
    def least_count(self) -> int:
        """Return how often a pair must occur to be kept as a positive."""
        return self.min_count if self.min_count is not None else 0 if self.count_column is None else 1


class Source(BaseModel):
    """The files a dataset is made from: those of a table or of an LF-* folder, and those of the label table."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    path: Path
    parts: dict[str, Path]
    labels: Path | None = None
    label_parts: dict[str, Path] = {}

    @property
    def is_lf(self) -> bool:
        """Whether this is an LF-* folder."""
        return "lbl" in self.parts

    @property
    def files(self) -> dict[str, Path]:
        """All files that are read, by their part."""
        return self.parts | self.label_parts


def prepare(
    source: Path, out: Path, settings: PrepareSettings, *, labels: Path | None = None, name: str | None = None,
    force: bool = False,
) -> tuple[Dataset, bool]:  # fmt: skip
    """Write the dataset of `source` to `out`; also tell whether that was needed (False: `out` already holds it).

    Raises DatasetError, with `out` as it was, for a source that cannot be used, for bad rows unless they are to be
    skipped, and when `out` holds something else.
    """
    found = find_source(source, labels, settings)
    name = _utf8(name or _name(source, found))
    chosen = settings.model_dump(mode="json").items()
    recorded: dict[str, Any] = {key: _utf8(value) if isinstance(value, str) else value for key, value in chosen} | {
        "prepare_version": PREPARE_VERSION,
        "files": {part: f"{_utf8(path.name)} {sha256(path)}" for part, path in found.files.items()},
    }
    if (kept := up_to_date(out, name, recorded)) is not None:
        return kept, False
    refuse_to_overwrite(out, force)
    problems, report = Problems(keep=settings.skip_bad_rows), Counter[str]()
    rows, label_rows = InputRows(problems), InputRows(problems)
    with Meter(sum(path.stat().st_size for path in found.files.values())) as meter:
        raw = _read(found, settings, rows, label_rows, report, meter)
        problems.stop_if_any(str(source))
        meter.at("checking and writing", 0)
        assembled = assemble(raw, settings.test, settings.validation, settings.min_label_count, report, rows.skipped)
        label_rows.skipped["rare_label"] += raw.listed - assembled.listed
        accounts = _accounts(source, rows, label_rows, assembled)
        require_rows(assembled.splits, source, accounts["rows"])
        sentences = [_utf8(sentence) for sentence in problems.sentences]
        meta = DatasetMeta(
            name=name,
            source=_utf8(source.resolve().name),
            settings=recorded,
            accounts=accounts,
            report={_utf8(what): count for what, count in _counted(report).items()},
            skipped=problems.total,
            skipped_first=tuple(sentences[:LISTED]),
        )
        return write_dataset(out, assembled.labels, assembled.splits, meta, replace=force, skipped=sentences), True


def _utf8(text: str) -> str:
    """Return `text` with lone surrogates escaped: they stand for bytes of names that are not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def _accounts(
    source: Path, rows: InputRows, label_rows: InputRows, assembled: Assembled
) -> dict[Literal["rows", "labels"], RowAccount]:
    """Return the account of the source, and of the label table if there is one. Raises InternalError."""
    account = RowAccount(read=rows.read, written=assembled.written, skipped=_counted(rows.skipped))
    accounts: dict[Literal["rows", "labels"], RowAccount] = {"rows": account.check(str(source))}
    if label_rows.read:
        skipped = _counted(label_rows.skipped)
        listed = RowAccount(read=label_rows.read, written=assembled.listed, skipped=skipped)
        accounts["labels"] = listed.check(f"labels of {source}")
    return accounts


def _counted(counts: Counter[str]) -> dict[str, int]:
    return {what: count for what, count in counts.items() if count}


def _name(source: Path, found: Source) -> str:
    """Return the default name of a dataset: that of its file, or of its folder if there are several files."""
    files = list(found.parts.values())
    return source.resolve().name if found.is_lf or len(files) > 1 else stem(files[0])


def up_to_date(out: Path, name: str, recorded: dict[str, Any]) -> Dataset | None:
    """The dataset in `out` when it was made from the same files with the same settings and still is what it was."""
    if not (out / "dataset.json").is_file():
        return None
    try:
        dataset = Dataset.open(out)
        same = (dataset.meta.name, dataset.meta.settings) == (name, recorded) and dataset.fingerprint != ""
    except DatasetError:  # damaged, so not what would be written; --force replaces it
        return None
    return dataset if same else None


def find_source(source: Path, labels: Path | None, settings: PrepareSettings) -> Source:
    """The files to read; DatasetError when there are none, more than one would do, or options do not go with them."""
    if not source.exists():
        raise DatasetError(f"{source} does not exist. Check the path.")
    if (source / "dataset.json").is_file():
        raise DatasetError(f"{source} is a prepared dataset already. Name what it was made from, or train on it.")
    lf = source.is_dir() and is_lf(source)
    parts = lf_files(source) if lf else _numbered("rows", table_files(source, without=labels))
    if lf:
        _refuse_options(source, labels, settings)
    elif settings.text != "title":
        raise DatasetError(f"--text is for LF-* folders, and {source} is none. Leave it out.")
    elif labels is None and (named := "key" if settings.label_key else "text" if settings.label_text else ""):
        raise DatasetError(f"--label-{named} names a column of the label table. Give that with --labels.")
    label_parts = _numbered("labels", table_files(labels)) if labels else {}
    found = Source(path=source, parts=parts, labels=labels, label_parts=label_parts)
    for path in parts.values():
        require_file(path)
    if not sum(path.stat().st_size for path in parts.values()):
        raise DatasetError(f"{source} is empty. Give a file with rows.")
    return found


def _numbered(part: str, files: list[Path]) -> dict[str, Path]:
    """Return the files of a table by name: `rows`, or `rows 1`, `rows 2`, … if there are several."""
    if len(files) == 1:
        return {part: files[0]}
    return {f"{part} {number}": path for number, path in enumerate(files, 1)}


def _refuse_options(source: Path, labels: Path | None, settings: PrepareSettings) -> None:
    chosen = {
        "--labels": labels,
        "--query-column": settings.query_column,
        "--label-column": settings.label_column,
        "--split-column": settings.split_column,
        "--count-column": settings.count_column,
        "--label-key": settings.label_key,
        "--label-text": settings.label_text,
        "--min-count": settings.min_count,
        "--separator": settings.separator,
        "--quoting": settings.quoting if settings.quoting != "auto" else None,
    }
    for option, value in chosen.items():
        if value:
            raise DatasetError(f"{option} does not go with {source}, an LF-* set with labels of its own. Leave it out.")


def _read(
    found: Source, settings: PrepareSettings, rows: InputRows, label_rows: InputRows, report: Counter[str], meter: Meter
) -> Raw:
    limit = settings.max_characters
    if found.is_lf:
        return read_lf(found.parts, settings.text, limit, rows, label_rows, report, meter)
    catalogue = Catalogue()
    table = Table(found.path, Layout.of(settings.separator, settings.quoting), without=found.labels)
    if found.labels is not None:
        key, text = settings.label_key, settings.label_text
        catalogue = read_catalogue(found.labels, key, text, limit, label_rows, report, meter)
        label_rows.problems.stop_if_any(
            str(found.labels)
        )  # before its rows: each click on a bad label would be bad too
    columns = Columns(settings.query_column, settings.label_column, settings.split_column, settings.count_column)
    return read_source(table, Reader(columns, limit, catalogue, report, rows, settings.least_count), meter)


def require_rows(splits: dict[Any, Any], source: Path, account: RowAccount) -> None:
    """DatasetError when nothing is left to learn from."""
    if splits["train"].num_rows == 0:
        why = "; ".join(f"{count:,} {reason}" for count, reason in account.lines())
        raise DatasetError(
            f"{source} leaves no training row: {account.sentence('written')}{f' ({why})' if why else ''}. "
            "Add rows, or lower --test, --validation, --min-count or --min-label-count."
        )
