"""The files of a table: patterns, folders, partitions and URLs; their columns, names and layouts."""

import errno
import gzip
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFile

from retrieval.errors import TableError
from retrieval.offline.query_files import Queries
from retrieval.tables.columns import Day, Parser, Text
from retrieval.tables.table import Table

QUERY: dict[str, Parser] = {"query": Text()}
QUERY_AND_DAY: dict[str, Parser] = {"query": Text(), "date": Day()}


def write(root: str, files: dict[str, bytes]) -> None:
    """Write files below a folder or URL."""
    for name, content in files.items():
        with fsspec.open(f"{root}/{name}", "wb", auto_mkdir=True) as file:
            file.write(content)


def read(source: Path | str, parsers: dict[str, Parser] = QUERY) -> list[tuple[Any, ...]]:
    """Return the values of all rows."""
    batches = list(Table(source).batches(parsers))
    assert not any(batch.bad for batch in batches)
    return [tuple(row[name] for name in parsers) for batch in batches for row in batch.rows.to_pylist()]


@pytest.fixture(params=["disk", "file", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Return a folder on this machine, as a path and as a URL, and one in the memory of this process."""
    yield {"disk": str(tmp_path), "file": f"file://{tmp_path}", "memory": f"memory://{tmp_path.name}"}[request.param]
    memory = fsspec.filesystem("memory")
    if memory.exists(f"/{tmp_path.name}"):
        memory.rm(f"/{tmp_path.name}", recursive=True)


def rows(*queries: str) -> bytes:
    """Return a CSV file with a column of queries."""
    return "".join(f"{query}\n" for query in ["query", *queries]).encode()


DAYS = {
    "2026-09-01/a.csv": rows("a"),
    "20260902/a.csv.gz": gzip.compress(rows("b")),
    "date=2026-09-03/x.csv": rows("c"),
}


def test_one_file_a_folder_and_a_pattern_are_read_in_order(root: str) -> None:
    """If this failed, a part would be lost, or labels would be numbered in another order on the next run."""
    write(root, {"b.csv": rows("b"), "a.csv": rows("a"), "c.csv": rows("c"), "_SUCCESS": b"", ".crc": b"x"})
    assert read(f"{root}/b.csv") == [("b",)]
    assert read(root) == [("a",), ("b",), ("c",)]
    assert read(f"{root}/[bc].csv") == [("b",), ("c",)]
    assert [part.name for part in Table(f"{root}/?.csv").parts] == ["a.csv", "b.csv", "c.csv"]
    with Table(f"{root}/a.csv").parts[0].open_bytes() as file:
        assert file.read() == rows("a")


def test_the_date_of_a_partition_is_a_column(root: str) -> None:
    """If this failed, a log in daily folders could not be split by time."""
    write(root, DAYS)
    assert [(query, str(day)) for query, day in read(root, QUERY_AND_DAY)] == [
        ("a", "2026-09-01"), ("b", "2026-09-02"), ("c", "2026-09-03"),
    ]  # fmt: skip
    write(root, {"more/2026-09-04.jsonl": b'{"query": "d", "n": 1}\n'})
    assert [str(day) for _, day in read(f"{root}/more", QUERY_AND_DAY)] == ["2026-09-04"]
    table = Table(f"{root}/*2*/*")
    assert table.names == ["query", "date"]
    assert table.path_columns == ["date"]
    assert table.notes()["path_columns"] == {"date": 3}
    assert [part.name for part in table.parts] == ["2026-09-01/a.csv", "20260902/a.csv.gz", "date=2026-09-03/x.csv"]
    pattern = f"{root}/*2026-09-0*/*.csv"
    assert [(query, str(day)) for query, day in read(pattern, QUERY_AND_DAY)] == [
        ("a", "2026-09-01"), ("c", "2026-09-03"),
    ]  # fmt: skip


def test_nested_partitions_give_a_column_each(root: str) -> None:
    """If this failed, the market of a log that Hive wrote would be lost."""
    write(root, {"market=uk/day=1/a.csv": rows("a"), "market=a%2Fb/day=__HIVE_DEFAULT_PARTITION__/a.csv": rows("b")})
    parsers: dict[str, Parser] = {"query": Text(), "market": Text(), "day": Text(required=False)}
    assert read(root, parsers) == [("b", "a/b", None), ("a", "uk", "1")]


def test_a_date_at_the_end_of_a_name_is_a_column_unless_the_file_has_it(root: str) -> None:
    """If this failed, daily files would have no date, or another one than their rows."""
    write(root, {"log-2026-09-01.csv": rows("a"), "log_20260902.csv": b"query,date\nb,2026-10-11\n"})
    assert [(query, str(day)) for query, day in read(root, QUERY_AND_DAY)] == [("a", "2026-09-01"), ("b", "2026-10-11")]
    write(root, {"more/x-20261399.csv": rows("c"), "more/x120260901.csv": rows("d")})
    assert [Table(f"{root}/more/{name}").names for name in ("x-20261399.csv", "x120260901.csv")] == [["query"]] * 2


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"a.csv": rows("a"), "more/b.csv": rows("b")}, "has data in subfolders (more), which would not be read."),
        ({"a.parquet": b"", "_delta_log/0.json": b"{}"}, "is a Delta Lake table, whose folder also"),
        ({"metadata/v1.json": b"{}", "data/a.parquet": b""}, "is an Iceberg table, whose folder also"),
        ({"a.csv": rows("a"), "b.jsonl": b"{}"}, "contains files of several formats: a.csv, b.jsonl."),
        ({"README.md": b"x"}, "contains no data file"),
    ],
)
def test_a_folder_that_is_no_table_is_refused(root: str, files: dict[str, bytes], sentence: str) -> None:
    """If this failed, deleted rows would be read again, or data in a subfolder would be left out silently."""
    write(root, files)
    with pytest.raises(TableError) as caught:
        Table(root)
    assert sentence in str(caught.value)


def test_a_source_that_does_not_exist_is_named(root: str) -> None:
    """If this failed, a wrong path or pattern would end in a traceback, or in an empty dataset."""
    write(root, {"a.csv": rows("a")})
    with pytest.raises(TableError, match=r"b\.csv does not exist\. Check the path\."):
        Table(f"{root}/b.csv")
    with pytest.raises(TableError, match=r"b\*\.csv matches no file\. Check the pattern\."):
        Table(f"{root}/b*.csv")


def test_all_formats_are_read_from_a_url() -> None:
    """If this failed, a format could be read from disk only."""
    root = "memory://formats"
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"query": ["a"]}), sink)
    write(root, {"a.parquet": sink.getvalue().to_pybytes(), "a.jsonl.gz": gzip.compress(b'{"query": "a"}\n')})
    assert read(f"{root}/a.parquet") == read(f"{root}/a.jsonl.gz") == [("a",)]
    queries = Queries(Path(f"{root}/a.jsonl.gz"), None)  # a Path removes a slash from a URL
    assert queries.first(2) == (["a"], None)
    stamp = queries.table.files[0].stamp
    write(root, {"a.jsonl.gz": gzip.compress(b'{"query": "b"}\n')})
    assert queries.table.files[0].stamp != stamp


def test_a_url_without_fsspec_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this failed, an installation without the extra would end in a traceback."""
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(TableError, match=r"Install it with: pip install 'diptych\[s3\]'\."):
        Table("s3://bucket/log.csv")
    with pytest.raises(TableError, match=r"Install it with: pip install 'diptych\[remote\]'\."):
        Table("memory://bucket/log.csv")


def test_a_password_in_a_url_is_refused_and_not_shown() -> None:
    """If this failed, messages and dataset.json would show a password."""
    with pytest.raises(TableError, match="The URL contains a password") as caught:
        Table("ftp://me:secret@host/log.csv")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.jsonl.zst", "a.parquet"])
def test_an_error_of_a_driver_while_reading_is_a_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this failed, an expired token would end `prepare` in a traceback."""

    def fail(file: MemoryFile, size: int = -1) -> bytes:
        raise RuntimeError("token expired")

    write("memory://errors", {name: b"query\na\n"})
    monkeypatch.setattr(MemoryFile, "read", fail)
    with pytest.raises(TableError, match=rf"errors/{name} cannot be read.*token expired"):
        read(f"memory://errors/{name}")


def test_an_unknown_scheme_is_refused() -> None:
    """If this failed, a misspelt URL would be read as a path."""
    with pytest.raises(TableError, match="fsspec has no driver for s4://"):
        Table("s4://bucket/log.csv")


def test_separator_and_encoding_are_reported(tmp_path: Path) -> None:
    """If this failed, a user would not see that a file was read in another way than expected."""
    (tmp_path / "a.csv").write_bytes("query;label\na;b\n".encode("utf-16"))
    (tmp_path / "b.csv").write_text("query\tlabel\nc\td\n")
    (tmp_path / "c.csv").write_text("query,label\nc,d\n")
    table = Table(tmp_path)
    assert table.layouts == {
        "separator ';'; encoding UTF-16": 1, "separator tab; encoding UTF-8": 1, "separator ','; encoding UTF-8": 1,
    }  # fmt: skip
    assert table.notes()["unusual_separators"] == {"';'": 1, "tab": 1}


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this failed, a day without permissions would be left out silently."""
    (tmp_path / "2026-09-01").mkdir()
    (tmp_path / "a.csv").write_bytes(rows("a"))
    list_folder = os.scandir

    def refuse(path: str) -> Any:
        if path.endswith("2026-09-01"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return list_folder(path)

    monkeypatch.setattr(os, "scandir", refuse)  # tests may run as root, who can list every folder
    with pytest.raises(TableError, match=r"2026-09-01 cannot be read \(Permission denied\)\. Check its permissions\."):
        Table(tmp_path)


def test_a_link_to_a_folder_is_read(tmp_path: Path) -> None:
    """If this failed, a partition that is a link would be left out silently."""
    (tmp_path / "log").mkdir()
    (tmp_path / "stored").mkdir()
    (tmp_path / "stored" / "a.csv").write_bytes(rows("a"))
    (tmp_path / "log" / "date=2026-09-01").symlink_to(tmp_path / "stored")
    assert [query for query, _ in read(tmp_path / "log", QUERY_AND_DAY)] == ["a"]
