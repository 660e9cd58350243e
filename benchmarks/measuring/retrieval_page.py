"""The page that `benchmarks/retrieval_cost.py` writes, from what its parts measured."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.measuring.bare_parts import PARTS
from benchmarks.measuring.label_scale import RECALL

Facts = dict[str, Any]


def page(facts: dict[str, Facts]) -> list[str]:
    """Markdown; a part that was never measured is left out."""
    sections: dict[str, Callable[[Facts], list[str]]] = {"parts": _parts, "scale": _scale, "offline": _offline}
    lines = ["# What retrieval costs"]
    for name, section in sections.items():
        if name in facts:
            found = facts[name]
            lines += ["", *section(found), "", f"`{found['command']}`", ""]
            lines.append(
                f"{found['machine']}; {found['load']:.1f} processes wanted one, on average of the last five minutes."
            )
    return lines


def _parts(facts: Facts) -> list[str]:
    rows = []
    for row in facts["rows"]:
        rounds = row["rounds"]
        spent = [_middle(one["parts"][name][1] for one in rounds) for name in PARTS]
        ratios = [_spread([one["ratios"][at] for one in rounds]) for at in (1, 0)]
        whole = _middle(one["whole"][1] for one in rounds)
        rows.append([
            f"{row['encoder']}, {row['labels']:,} labels, ef {row['effort']}", str(row["batch"]), *map(_figure, spent),
            _figure(sum(spent)), _figure(whole), *ratios,
        ])  # fmt: skip
    columns = ["bundle", "batch", *PARTS, "sum", "`search`", "ratio", "ratio by the clock"]
    return [
        "## `Retriever.search` beside its bare parts",
        "",
        "Milliseconds of processor time a query, and the throughput of `search` as a share of that of the three calls "
        f"alone; median (least–greatest) of {len(facts['rows'][0]['rounds'])} rounds, in which both sides answer the "
        "same batches by turns. Beside the calls, `search` checks its input, pads, scores candidates exactly, splits "
        "scores into their halves and makes a hit of each row.",
        "",
        *_table(columns, rows),
    ]


def _scale(facts: Facts) -> list[str]:
    rows, least = [], facts["rows"][0]
    for row in facts["rows"]:
        rows.append([
            f"{row['labels']:,}", str(row["ef"]), f"{row['recall_at_10']:.4f}", _figure(row["milliseconds"]),
            f"{row['milliseconds'] / least['milliseconds']:.2f}", _figure(row["exact_milliseconds"]),
            f"{row['exact_milliseconds'] / row['milliseconds']:.1f}",
            f"{row['build_seconds']:,.0f} ({row['build_processor_seconds']:,.0f})", f"{row['file_bytes']:,.0f}",
            f"{row['memory_bytes']:,.0f}", f"{row['open_seconds']:.2f} ({row['check_seconds']:.2f})",
        ])  # fmt: skip
    columns = [
        "labels", "ef", "recall@10", "ms", "growth", "ms, exact", "speed-up", "build, s (processor)",
        "bytes per label, file", "in memory", "open, s (of it checks)",
    ]  # fmt: skip
    return [
        "## HNSW beside exact search, by the number of labels",
        "",
        f"The {facts['real']:,} label vectors of {facts['dataset']} (d = {facts['dim']}) in a random order, and behind "
        "them jittered copies: a copy is its label moved by the distance of a random label from its nearest neighbour, "
        "along what labels differ in (a draw from their covariance), each half then given its old length. "
        f"{facts['queries']:,} real queries at weight {facts['weight']:g}; for each number of labels the least ef that "
        f"reaches recall@10 of {RECALL}. Milliseconds are the median of one query alone on one thread, the sizes in "
        "turn. "
        "Indexes are built as `diptych export` builds them, with the threads of the command; they are opened from the "
        "system's cache.",
        "",
        *_table(columns, rows),
    ]


def _offline(facts: Facts) -> list[str]:
    rows = [
        [
            f"{row['queries']:,}", f"{row['seconds']:,.0f}", f"{row['queries'] / row['seconds']:,.0f}",
            f"{row['queries'] / row['processor_seconds']:,.0f}", f"{row['processor_seconds'] / row['seconds']:.2f}",
            f"{row['own_bytes'] / 2**20:,.0f}", f"{row['mapped_bytes'] / 2**20:,.0f}",
        ]
        for row in facts["rows"]
    ]  # fmt: skip
    columns = [
        "queries", "seconds", "queries per second", "per second of CPU time", "processors kept busy",
        "MiB at most, its own", "with mapped files",
    ]  # fmt: skip
    weight = "the default weight" if facts["weight"] is None else f"weight {facts['weight']:g}"
    went_on = "the same matches as" if facts["same"] else "OTHER MATCHES than"
    return [
        "## `diptych predict`",
        "",
        f"Real test queries and variations of them, one more word each; Parquet to Parquet, k = 10, {weight}.",
        "",
        *_table(columns, rows),
        "",
        f"Stopped with Ctrl-C and started again, it went on behind {facts['parts_found']} written part"
        f"{'s' if facts['parts_found'] != 1 else ''} and wrote {went_on} a run without a stop.",
    ]


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) - 1)}"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def _middle(figures: Iterable[float]) -> float:
    return statistics.median(figures)


def _spread(figures: Sequence[float]) -> str:
    return f"{_middle(figures):.2f} ({min(figures):.2f}–{max(figures):.2f})"


def _figure(milliseconds: float) -> str:
    """Three digits that count."""
    return (
        f"{milliseconds:.3f}"
        if milliseconds < 1
        else f"{milliseconds:.2f}"
        if milliseconds < 100
        else f"{milliseconds:,.0f}"
    )
