"""`diptych predict`: every query of a file gets the results of a search, also after an interruption."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
import pytest

from retrieval import Retriever, open_bundle
from retrieval.errors import BadInput
from retrieval.offline.batch_search import BatchResult, QueryFormat, batch_search
from retrieval.offline.shard_search import SearchOptions
from retrieval.tables.account import RowAccount
from tests.support.bundles import WORDS, make_bundle
from tests.support.command import run

QUERIES = [f"{one} {other}" for one in WORDS for other in WORDS][:30]
READERS: dict[str, Callable[[Path], pa.Table]] = {
    ".parquet": pq.read_table,
    ".csv": pyarrow.csv.read_csv,
    ".jsonl": pyarrow.json.read_json,
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "words")


@pytest.fixture(scope="module")
def retriever(bundle: Path) -> Retriever:
    return open_bundle(bundle, threads=1)


def written(folder: Path, ending: str, queries: list[str | None], column: str = "query") -> Path:
    """Write a file of queries."""
    path, table = folder / f"queries{ending}", pa.table({"day": list(range(len(queries))), column: queries})
    if ending == ".parquet":
        pq.write_table(table, path, row_group_size=4)
    elif ending == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    return path


def expected(retriever: Retriever, queries: list[str | None], k: int, **wanted: Any) -> list[tuple[Any, ...]]:
    """Return row, query, rank, label and text of every hit."""
    return [
        (row, query, rank + 1, hit.id, hit.text)
        for row, query in enumerate(queries)
        if query and query.strip()
        for rank, hit in enumerate(retriever.search([query], k, **wanted)[0])
    ]


def found(path: Path) -> list[tuple[Any, ...]]:
    rows = READERS[path.suffix](path).to_pylist()
    return [(row["row"], row["query"], row["rank"], row["id"], row["text"]) for row in rows]


def ignore(done: int, total: int) -> None: ...


def search_file(
    retriever: Retriever,
    source: Path,
    target: Path,
    query_format: QueryFormat,
    options: SearchOptions,
    progress: Callable[[int, int], object],
) -> BatchResult:
    """Search in shards of seven queries, so that thirty are five."""
    return batch_search(retriever, source, target, query_format, options, progress, queries_per_shard=7)


@pytest.mark.parametrize("out", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize("source", [".parquet", ".csv", ".jsonl"])
def test_every_format_gives_what_a_search_gives(tmp_path: Path, retriever: Retriever, source: str, out: str) -> None:
    """If it fails, a batch search loses, repeats or mixes up queries, or ranks differently from the service."""
    target = tmp_path / f"matches{out}"
    result = search_file(
        retriever, written(tmp_path, source, list(QUERIES)), target, QueryFormat(), SearchOptions(k=3), ignore
    )
    assert found(target) == expected(retriever, list(QUERIES), 3)
    assert result == BatchResult(RowAccount(read=30, written=30), matches=90)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f"matches{out}", f"queries{source}"])


def test_scores_and_shares_are_those_of_the_search(tmp_path: Path, retriever: Retriever) -> None:
    """If it fails, the scores of a batch search differ from those of the service."""
    target = tmp_path / "matches.parquet"
    search_file(
        retriever,
        written(tmp_path, ".csv", ["red city"]),
        target,
        QueryFormat(),
        SearchOptions(k=4, weight=0.3),
        ignore,
    )
    hits = retriever.search(["red city"], 4, weight=0.3)[0]
    for row, hit in zip(pq.read_table(target).to_pylist(), hits, strict=True):
        shares = (hit.score, hit.dual_encoder, hit.classifier)
        assert (row["score"], row["dual_encoder"], row["classifier"]) == pytest.approx(shares, abs=1e-6)


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".jsonl"])
def test_queries_without_text_have_no_matches_and_are_counted(
    tmp_path: Path, retriever: Retriever, ending: str
) -> None:
    """If it fails, one blank line ends a batch search, or shifts the rows after it."""
    queries = ["red", None, "  ", "rain", "two\nlines of red", *[""] * 15, "blue"]
    target = tmp_path / "matches.jsonl"
    result = search_file(
        retriever, written(tmp_path, ending, queries), target, QueryFormat(), SearchOptions(k=2), ignore
    )
    assert found(target) == expected(retriever, queries, 2)
    assert result.account == RowAccount(read=21, written=4, skipped={"blank_query": 17})


def test_an_empty_line_of_a_list_of_queries_keeps_its_place(tmp_path: Path, retriever: Retriever) -> None:
    """If it fails, the row numbers of a list without a header are off by one."""
    source, target = tmp_path / "queries.csv", tmp_path / "matches.csv"
    source.write_text("query\nred\n\nrain\n")
    result = search_file(retriever, source, target, QueryFormat(), SearchOptions(k=1), ignore)
    assert [row[:2] for row in found(target)] == [(0, "red"), (2, "rain")]
    assert result.account == RowAccount(read=3, written=2, skipped={"blank_query": 1})


class CountingRetriever:
    """A retriever that records the number of queries of each search."""

    def __init__(self, retriever: Retriever) -> None:
        self._retriever = retriever
        self.searched: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._retriever, name)

    def search_rows(self, queries: list[str], *arguments: Any, **options: Any) -> Any:
        self.searched.append(len(queries))
        return self._retriever.search_rows(queries, *arguments, **options)


def test_an_interrupted_run_resumes_with_the_same_result(tmp_path: Path, retriever: Retriever) -> None:
    """If it fails, an interrupted run starts again, or loses the queries at which it was interrupted."""
    source, target = written(tmp_path, ".jsonl", list(QUERIES)), tmp_path / "matches.csv"

    def stop(done: int, total: int) -> None:
        if done > 14:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search_file(retriever, source, target, QueryFormat(), SearchOptions(k=3), stop)
    assert not target.exists()
    answered = len(list(tmp_path.glob(".matches.csv.shards/shard-*")))
    assert answered >= 3  # the one that was being answered when it was stopped is kept
    counting = CountingRetriever(retriever)
    search_file(counting, source, target, QueryFormat(), SearchOptions(k=3), ignore)  # type: ignore[arg-type]
    assert counting.searched == [7, 7, 7, 7, 2][answered:]
    assert found(target) == expected(retriever, list(QUERIES), 3)


def test_shards_of_other_arguments_are_not_reused(tmp_path: Path, retriever: Retriever) -> None:
    """If it fails, a file contains matches of two different runs."""
    source, target = written(tmp_path, ".csv", list(QUERIES)), tmp_path / "matches.parquet"

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    for queries, wanted in ((QUERIES, SearchOptions(k=5)), (QUERIES[::-1], SearchOptions(k=3))):
        written(tmp_path, ".csv", list(queries))
        with pytest.raises(KeyboardInterrupt):
            search_file(retriever, source, target, QueryFormat(), wanted, stop)
    written(tmp_path, ".csv", list(QUERIES))
    search_file(retriever, source, target, QueryFormat(), SearchOptions(k=3), ignore)
    assert found(target) == expected(retriever, list(QUERIES), 3)


def test_the_command_filters_and_names_what_it_wrote(
    tmp_path: Path, bundle: Path, retriever: Retriever, capsys: pytest.CaptureFixture[str]
) -> None:
    """If it fails, the command ignores options, or does not report its result."""
    source, target = written(tmp_path, ".csv", ["red", "12"], column="ask"), tmp_path / "matches.csv"
    asked = ("predict", "--bundle", bundle, "--input", source, "--output", target, "--column", "ask", "-k", "4")
    assert run(*asked, "--filter", "market=US", "--min-score", "0.01") == 0
    assert found(target) == expected(retriever, ["red", "12"], 4, filter={"market": ["US"]}, min_score=0.01)
    printed = capsys.readouterr().out
    assert "2 rows read = 2 answered" in printed
    assert "matches from bundle words: " in printed


@pytest.mark.parametrize(
    ("name", "content", "column", "output", "why"),
    [
        ("queries.csv", "query\nred\n", None, "matches.xlsx", "'.xlsx' is not an output format"),
        ("queries.txt", "red\n", None, "matches.csv", "queries.txt has none of the endings"),
        ("queries.csv", "q\nred\n", None, "matches.csv", "has no column 'query'. It has: q"),
        ("queries.csv", "q\nred\n", "x", "matches.csv", "has no column 'x'"),
        ("queries.jsonl", '{"query": 1}\n', None, "matches.csv", "line 1: query is 1, not text"),
        ("queries.jsonl", "red\n", None, "matches.csv", 'line 1: "red" is not JSON'),
        ("queries.parquet", "red\n", None, "matches.csv", "cannot be read"),
        ("queries.csv", None, None, "matches.csv", "does not exist"),
        ("queries.csv", "query\nred\n", None, "queries.csv", "exists already"),
    ],
)
def test_invalid_arguments_of_a_batch_search_are_one_sentence(
    tmp_path: Path, retriever: Retriever, name: str, content: str | None, column: str | None, output: str, why: str
) -> None:
    """If it fails, a wrong path or column ends in a traceback, or overwrites a file."""
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(BadInput, match=why):
        search_file(retriever, tmp_path / name, tmp_path / output, QueryFormat(column), SearchOptions(), ignore)
    assert content is None or (tmp_path / name).read_text() == content


@pytest.mark.parametrize("question", ["", '{"bundle": "', "[]"])
def test_a_run_that_was_killed_while_it_began_is_begun_anew(
    tmp_path: Path, retriever: Retriever, question: str
) -> None:
    """If it fails, a truncated file of arguments ends every later run in a traceback."""
    source, target = written(tmp_path, ".csv", list(QUERIES)), tmp_path / "matches.csv"
    (tmp_path / ".matches.csv.shards").mkdir()
    (tmp_path / ".matches.csv.shards" / "arguments.json").write_text(question)
    (tmp_path / ".matches.csv.shards" / "shard-00000001").write_text("of another run")
    search_file(retriever, source, target, QueryFormat(), SearchOptions(k=3), ignore)
    assert found(target) == expected(retriever, list(QUERIES), 3)


def test_queries_that_change_while_they_are_answered_are_an_error(tmp_path: Path, retriever: Retriever) -> None:
    """If it fails, matches are of two versions of a file, or the error is reported as a bug."""
    source, target = written(tmp_path, ".jsonl", list(QUERIES)), tmp_path / "matches.csv"

    def append(done: int, total: int) -> None:
        with source.open("a") as file:
            file.write('{"query": "red rain blue kids"}\n')

    with pytest.raises(BadInput, match="changed while it was read"):
        search_file(retriever, source, target, QueryFormat(), SearchOptions(k=3), append)
    assert not target.exists()
    search_file(retriever, source, target, QueryFormat(), SearchOptions(k=3), ignore)
    assert {row[1] for row in found(target)} == {*QUERIES, "red rain blue kids"}
