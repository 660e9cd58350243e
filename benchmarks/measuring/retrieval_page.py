"""Write the page of `benchmarks/retrieval_cost.py` from the results of its parts."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.measuring.bare_parts import PARTS
from benchmarks.measuring.label_scale import RECALL

Facts = dict[str, Any]


def page(facts: dict[str, Facts]) -> list[str]:
    """Return the page as Markdown lines, without parts that were never measured."""
    sections: dict[str, Callable[[Facts], list[str]]] = {"parts": _parts, "scale": _scale, "offline": _offline}
    lines = ["# Cost of retrieval"]
    for name, section in sections.items():
        if name in facts:
            part = facts[name]
            lines += ["", *section(part), "", f"`{part['command']}`", ""]
            lines.append(f"{part['machine']}; load average of the last five minutes: {part['load']:.1f}.")
    return lines


def _parts(facts: Facts) -> list[str]:
    rows = []
    for row in facts["rows"]:
        rounds = row["rounds"]
        spent = [_median(one["parts"][name][1] for one in rounds) for name in PARTS]
        ratios = [_spread([one["ratios"][at] for one in rounds]) for at in (1, 0)]
        whole = _median(one["whole"][1] for one in rounds)
        rows.append([
            f"{row['encoder']}, {row['labels']:,} labels, ef {row['ef_search']}", str(row["batch"]),
            *map(_milliseconds, spent), _milliseconds(sum(spent)), _milliseconds(whole), *ratios,
        ])  # fmt: skip
    columns = ["bundle", "batch", *PARTS, "sum", "`search`", "ratio", "ratio of wall time"]
    return [
        "## `Retriever.search` and its parts",
        "",
        "Milliseconds of CPU time per query, and the throughput of `search` divided by that of the three calls; median "
        f"(minimum–maximum) of {len(facts['rows'][0]['rounds'])} rounds, in which both sides search the same batches "
        "in alternation. Besides the calls, `search` checks its input, pads, scores candidates exactly, splits scores "
        "into the parts of both heads, and builds a hit per row.",
        "",
        *_table(columns, rows),
    ]


def _scale(facts: Facts) -> list[str]:
    rows, smallest = [], facts["rows"][0]
    for row in facts["rows"]:
        rows.append([
            f"{row['labels']:,}", str(row["ef"]), f"{row['recall_at_10']:.4f}", _milliseconds(row["milliseconds"]),
            f"{row['milliseconds'] / smallest['milliseconds']:.2f}", _milliseconds(row["exact_milliseconds"]),
            f"{row['exact_milliseconds'] / row['milliseconds']:.1f}",
            f"{row['build_seconds']:,.0f} ({row['build_processor_seconds']:,.0f})", f"{row['file_bytes']:,.0f}",
            f"{row['memory_bytes']:,.0f}", f"{row['open_seconds']:.2f} ({row['check_seconds']:.2f})",
        ])  # fmt: skip
    columns = [
        "labels", "ef", "recall@10", "ms", "growth", "ms, exact", "speed-up", "build, s (CPU)",
        "bytes per label, file", "in memory", "open, s (checks)",
    ]  # fmt: skip
    return [
        "## HNSW and exact search, by the number of labels",
        "",
        f"The {facts['real']:,} label vectors of {facts['dataset']} (d = {facts['dim']}) in random order, followed by "
        "jittered copies: a label moved by the distance of a random label to its nearest neighbour, in a direction "
        "drawn from the labels' covariance; each half then gets its old length. "
        f"{facts['queries']:,} real queries at weight {facts['weight']:g}; for each number of labels the smallest ef "
        f"that reaches recall@10 of {RECALL}. Milliseconds are the median of single queries on one thread, the sizes "
        "in alternation. Indexes have the settings of `diptych export` and are built with the threads of the command; "
        "they are opened from the page cache.",
        "",
        *_table(columns, rows),
    ]


def _offline(facts: Facts) -> list[str]:
    rows = [
        [
            f"{row['queries']:,}", f"{row['seconds']:,.0f}", f"{row['queries'] / row['seconds']:,.0f}",
            f"{row['queries'] / row['processor_seconds']:,.0f}", f"{row['processor_seconds'] / row['seconds']:.2f}",
            f"{row['private_bytes'] / 2**20:,.0f}", f"{row['mapped_bytes'] / 2**20:,.0f}",
        ]
        for row in facts["rows"]
    ]  # fmt: skip
    columns = [
        "queries", "seconds", "queries per second", "per second of CPU time", "busy CPUs",
        "peak MiB", "with mapped files",
    ]  # fmt: skip
    weight = "the default weight" if facts["weight"] is None else f"weight {facts['weight']:g}"
    matches = "the same matches as" if facts["same"] else "OTHER MATCHES than"
    return [
        "## `diptych predict`",
        "",
        f"Real test queries, and variations with one more word; Parquet to Parquet, k = 10, {weight}.",
        "",
        *_table(columns, rows),
        "",
        f"Interrupted with Ctrl-C and resumed, it continued after {facts['shards']} finished shard"
        f"{'s' if facts['shards'] != 1 else ''} and wrote {matches} an uninterrupted run.",
    ]


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) - 1)}"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)


def _spread(values: Sequence[float]) -> str:
    return f"{_median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def _milliseconds(milliseconds: float) -> str:
    """Format with three significant digits."""
    return (
        f"{milliseconds:.3f}"
        if milliseconds < 1
        else f"{milliseconds:.2f}"
        if milliseconds < 100
        else f"{milliseconds:,.0f}"
    )
