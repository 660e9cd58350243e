"""Write one small table in many formats; each entry returns the path to read."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROWS = [
    ("red shoes", "kind 1"), ("blue hat", "kind 2"), ("café", "kind 1"), ("rain coat", "kind 3"),
    ("12 inch pizza", "kind 2"), ("light", "kind 4"),
]  # fmt: skip
QUERIES = [query for query, _ in ROWS]
HUGE = "9" * 5_000  # an integer of more digits than Python reads by itself

Write = Callable[[Path], Path]


def delimited(
    separator: str = ",", *, end: str = "\n", header: tuple[str, ...] = ("query", "label"), more: tuple[str, ...] = ()
) -> str:
    """Return the table as text; `more` are cells after the two of every row."""
    lines = [separator.join(header), *(separator.join((*row, *more)) for row in ROWS)]
    return end.join(lines) + end


def json_lines(end: str = "\n", **more: Any) -> str:
    """Return the table as JSON Lines, with more keys in every row."""
    return end.join(json.dumps({"query": query, "label": label, **more}) for query, label in ROWS) + end


def table(**more: Any) -> pa.Table:
    """Return the table in Arrow, with more columns."""
    return pa.table({"query": QUERIES, "label": [label for _, label in ROWS], **more})


def text(name: str, content: str, encoding: str = "utf-8") -> Write:
    """Return a writer of a text file."""
    return packed(name, content.encode(encoding))


def packed(name: str, content: bytes) -> Write:
    """Return a writer of a file of these bytes."""

    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def parquet(name: str, content: pa.Table, **options: Any) -> Write:
    """Return a writer of a Parquet file."""

    def write(folder: Path) -> Path:
        pq.write_table(content, folder / name, **options)
        return folder / name

    return write


def folder_of(files: dict[str, Write | bytes]) -> Write:
    """Return a writer of a folder with these files."""

    def write(folder: Path) -> Path:
        target = folder / "table"
        target.mkdir()
        for name, content in files.items():
            if isinstance(content, bytes):
                (target / name).parent.mkdir(exist_ok=True)
                (target / name).write_bytes(content)
            else:
                content(target)
        return target

    return write


def broken_link(folder: Path) -> Path:
    """Write a folder of two parts, one of which is a broken symlink."""
    target = folder_of({"a.csv": CSV.encode()})(folder)
    (target / "b.csv").symlink_to(folder / "gone.csv")
    return target


def _columns_of_all_types() -> dict[str, Any]:
    n = len(ROWS)
    return {
        "ns": pa.array([1_700_000_000_123_456_789] * n, pa.timestamp("ns")),
        "time": pa.array([1] * n, pa.time64("ns")),
        "span": pa.array([1] * n, pa.duration("ns")),
        "far": pa.array([4_000_000] * n, pa.int32()).cast(pa.date32()),
        "big": pa.array([2**64 - 1] * n, pa.uint64()),
        "exact": pa.array(["1.5"] * n).cast(pa.decimal128(10, 2)),
        "void": pa.nulls(n),
        "nested": pa.array([{"a": [timedelta(days=1)]}] * n),
        "not_utf8": pa.Array.from_buffers(pa.string(), n, pa.array([b"\xff"] * n).buffers()),
        "long": ["x" * 150_000] * n,
    }


def _twice_named() -> pa.Table:
    return pa.Table.from_arrays([*table().columns, pa.array([1] * len(ROWS)), pa.array([2] * len(ROWS))],
                                names=["query", "label", "note", "note"])  # fmt: skip


CSV = delimited()
JSONL = json_lines()
HALVES = [delimited().splitlines(keepends=True)[:1] + part for part in
          (CSV.splitlines(keepends=True)[1:3], CSV.splitlines(keepends=True)[3:])]  # fmt: skip

# Each of these is read as ROWS, whole, by every command.
GOOD: dict[str, Write] = {
    "csv": text("t.csv", CSV),
    "csv, upper-case ending": text("t.CSV", CSV),
    "csv, no line end at the end": text("t.csv", CSV.rstrip("\n")),
    "csv, carriage return and line feed": text("t.csv", delimited(end="\r\n")),
    "csv, carriage returns only": text("t.csv", delimited(end="\r")),
    "csv, all cells in quotes": text("t.csv", delimited('","', header=('"query', 'label"'))
                                     .replace('"query","label"\n', '"query","label"\n"').replace("\n", '"\n"')
                                     .replace('label""', 'label"').replace('\n""', '\n"').rstrip('"')),
    "csv, byte order mark": text("t.csv", CSV, "utf-8-sig"),
    "csv, UTF-16 with a mark": text("t.csv", CSV, "utf-16"),
    "csv, UTF-16 little-endian without a mark": text("t.csv", CSV, "utf-16-le"),
    "csv, UTF-16 big-endian without a mark": text("t.csv", CSV, "utf-16-be"),
    "csv, UTF-16 without a mark and few Latin letters": text(
        "t.csv", delimited(header=("query", "label", "n"), more=("鞋" * 999, )), "utf-16-le"
    ),
    "csv, UTF-32": text("t.csv", CSV, "utf-32"),
    "csv, semicolons": text("t.csv", delimited(";")),
    "csv, semicolons and commas inside": text("t.csv", delimited(";", header=("query", "label", "p"), more=("1,5",))),
    "csv, tabs": text("t.csv", delimited("\t")),
    "csv, bars": text("t.csv", delimited("|")),
    "csv, Hive's separator": text("t.csv", delimited("\x01")),
    "csv, a first line sep=;": text("t.csv", "sep=;\n" + delimited(";")),
    "csv, separators at the end of all lines": text("t.csv", delimited(header=("query", "label", ""), more=("", ))),
    "csv, separators at the end of the header": text("t.csv", delimited(header=("query", "label", "", ""))),
    "csv, separators at the end of the rows": text("t.csv", delimited(more=("", ""))),
    "csv, cells without a column name": text("t.csv", delimited(header=("query", "label", ""), more=("7", ))),
    "csv, an unused name twice": text("t.csv", delimited(header=("query", "label", "n", "n"), more=("1", "2"))),
    "csv, spaces around the names": text("t.csv", delimited(header=(" query ", " label"))),
    "csv, an unused long cell": text("t.csv", delimited(header=("query", "label", "n"), more=("x" * 150_000, ))),
    "csv, an unused cell with a NUL": text("t.csv", delimited(header=("query", "label", "n"), more=("a\0b", ))),
    "csv, an unused cell that is not UTF-8": packed(
        "t.csv", delimited(header=("query", "label", "n"), more=("#", )).encode().replace(b"#", b"\xe9")
    ),
    "csv, an unused cell with line breaks": text(
        "t.csv", delimited(header=("query", "label", "n"), more=('"a\nb\n"', ))
    ),
    "csv.gz": packed("t.csv.gz", gzip.compress(CSV.encode())),
    "csv.xz": packed("t.csv.xz", lzma.compress(CSV.encode())),
    "csv.bz2": packed("t.csv.bz2", bz2.compress(CSV.encode())),
    "csv.zst": packed("t.csv.zst", pa.compress(CSV.encode(), codec="zstd", asbytes=True)),
    "csv.GZ": packed("t.CSV.GZ", gzip.compress(CSV.encode())),
    "csv.gz of two members": packed("t.csv.gz", gzip.compress(CSV[:20].encode()) + gzip.compress(CSV[20:].encode())),
    "gzip named .csv": packed("t.csv", gzip.compress(CSV.encode())),
    "zstd named .jsonl": packed("t.jsonl", pa.compress(JSONL.encode(), codec="zstd", asbytes=True)),
    "gzip of UTF-16": packed("t.csv.gz", gzip.compress(CSV.encode("utf-16"))),
    "not compressed, named .csv.gz": text("t.csv.gz", CSV),
    "tsv": text("t.tsv", delimited("\t")),
    "tsv, commas": text("t.tsv", delimited(",")),
    "tsv, all cells in quotes": text("t.tsv", "".join(f'"{q}"\t"{k}"\n' for q, k in [("query", "label"), *ROWS])),
    "jsonl": text("t.jsonl", JSONL),
    "ndjson": text("t.ndjson", JSONL),
    "json, as Spark names it": text("t.json", JSONL),
    "jsonl, byte order mark": text("t.jsonl", JSONL, "utf-8-sig"),
    "jsonl, UTF-16": text("t.jsonl", JSONL, "utf-16"),
    "jsonl, carriage returns only": text("t.jsonl", json_lines("\r")),
    "jsonl, unused NaN, nesting and a huge integer": text(
        "t.jsonl", json_lines(n=[1, {"a": float("nan")}], h=1).replace('"h": 1', f'"h": {HUGE}')
    ),
    "jsonl, an unused key of several types": text(
        "t.jsonl", "".join(json.dumps({"query": q, "label": k, "n": [1, "x", None, [2]][row % 4]}) + "\n"
                           for row, (q, k) in enumerate(ROWS))
    ),
    "jsonl, a first line of a megabyte": text("t.jsonl", json_lines(n="x" * 1_100_000)),
    "parquet": parquet("t.parquet", table(), row_group_size=2),
    "parquet, upper-case ending": parquet("t.Parquet", table()),
    "parquet, columns of all types that are not used": parquet("t.parquet", table(**_columns_of_all_types())),
    "parquet, an unused name twice": parquet("t.parquet", _twice_named()),
    "parquet, dictionaries": parquet("t.parquet", table(query=pa.array(QUERIES).dictionary_encode())),
    "parquet, large strings": parquet("t.parquet", table(query=pa.array(QUERIES, pa.large_string()))),
    "parquet, string views": parquet("t.parquet", table(query=pa.array(QUERIES, pa.string_view()))),
    "parquet, bytes": parquet("t.parquet", table(query=[query.encode() for query in QUERIES])),
    "folder of Spark's parquet": folder_of({
        "_SUCCESS": b"", "._SUCCESS.crc": b"crc", ".part-00000-a.snappy.parquet.crc": b"crc",
        "part-00000": parquet("part-00000-a.snappy.parquet", table().slice(0, 2)),
        "part-00001": parquet("part-00001-a.snappy.parquet", table().slice(2, 0)),
        "part-00002": parquet("part-00002-a.snappy.parquet", table().slice(2)),
    }),
    "folder of csv parts, one empty, one compressed": folder_of({
        "part-0.csv": "".join(HALVES[0]).encode(), "part-1.csv": b"",
        "part-2.csv.gz": gzip.compress("".join(HALVES[1]).encode()), "part-3.csv": b"query,label\n", "notes.md": b"x",
    }),
    "folder of json parts": folder_of({
        f"part-{row}.json": line.encode() for row, line in enumerate(JSONL.splitlines(keepends=True))
    }),
    "folder of partitions": folder_of({
        "market=uk/a.csv": "".join(HALVES[0]).encode(),
        "market=us/a.csv.gz": gzip.compress("".join(HALVES[1]).encode()),
    }),
    "folder of days": folder_of({
        "2026-09-01/a.csv": "".join(HALVES[0]).encode(), "20260902/a.csv": "".join(HALVES[1]).encode(),
    }),
    "folder of one file": folder_of({"t.csv": CSV.encode(), "README.md": b"x", "card.json": b"{}"}),
}  # fmt: skip

# Each of these is refused by every command with one sentence; the text here is part of it.
REFUSED: dict[str, tuple[Write, str]] = {
    "nothing": (lambda folder: folder / "none.csv", "does not exist. Check the path."),
    "another ending": (text("t.xlsx", CSV), "has none of the endings .jsonl, .ndjson, .csv, .tsv, .parquet, .json"),
    "a folder of several kinds": (folder_of({"a.csv": b"", "b.parquet": b""}), "several formats: a.csv, b.parquet"),
    "a folder with data in inner folders": (
        folder_of({"a.csv": CSV.encode(), "more/b.csv": CSV.encode()}), "has data in subfolders (more), which would",
    ),
    "a folder with a broken link": (broken_link, "contains links to missing files: b.csv."),
    "a folder of Delta Lake": (
        folder_of({"a.csv": CSV.encode(), "_delta_log/0.json": b"{}"}), "is a Delta Lake table, whose folder also",
    ),
    "a folder without data": (folder_of({"README.md": b"x", "_SUCCESS": b""}), "contains no data file"),
    "a folder of two tables": (
        folder_of({"a.csv": CSV.encode(), "b.csv": b"id,text\n1,x\n"}),
        "b.csv has no column 'query'. It has: id, text.",
    ),
    "a zip archive": (packed("t.csv", b"PK\x03\x04" + bytes(99)), "is a zip archive or a spreadsheet; unpack it"),
    "parquet named csv": (packed("t.csv", b"PAR1" + bytes(99)), "is Parquet; rename it to .parquet"),
    "csv named parquet": (text("t.parquet", CSV), "cannot be read as Parquet"),
    "gzip named parquet": (packed("t.parquet", gzip.compress(CSV.encode())), "it is compressed as gzip. Unpack it"),
    "lz4": (packed("t.csv", b"\x04\x22\x4d\x18" + bytes(99)), "is compressed as lz4; use gzip or zstd."),
    "gzip cut off": (packed("t.csv.gz", gzip.compress(CSV.encode())[:-9]), "is truncated or not a gzip file"),
    "zstd cut off": (
        packed("t.csv.zst", pa.compress(CSV.encode(), codec="zstd", asbytes=True)[:-9]), "truncated or not a zstd file",
    ),
    "UTF-16 cut off": (packed("t.csv", CSV.encode("utf-16")[:-1]), "is not valid UTF-16"),
    "no such column": (text("t.csv", delimited(header=("q", "label"))), "has no column 'query'. It has: q, label."),
    "an unknown separator": (text("t.csv", delimited("^")), "name it with --separator"),
    "the column twice": (
        text("t.csv", delimited(header=("query", "label", "query"), more=("x",))), "has two columns 'query'",
    ),
    "a header without names": (text("t.csv", ",,\na,b,\n"), "has no header line. Name the columns in the first line."),
    "a header with a stray quote": (text("t.csv", '"query"x,label\na,b\n'), "line 1: the quotes do not match"),
    "a JSON array": (text("t.json", json.dumps([{"query": "a", "label": "b"}])), "a JSON array. Write one object"),
    "a JSON array over lines": (text("t.jsonl", '[\n{"query": "a", "label": "b"}\n]\n'), "contains a JSON array."),
    "times as text": (
        parquet("t.parquet", table(query=pa.array([1] * len(ROWS), pa.timestamp("ns")))),
        "column 'query' has the type timestamp[ns], not text or numbers.",
    ),
}  # fmt: skip
