"""`diptych export`: build a verified bundle from a checkpoint."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from export.build import ExportedBundle
    from retrieval.bundle.facts import CascadeFacts

app = typer.Typer()


@app.command(
    epilog="Example:\n"
    "  diptych export checkpoint --store store --activate\n"
    "  diptych export checkpoint --store store --precision int8"
)
def export(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="Checkpoint folder written by `diptych train`.")
    ],
    store: Annotated[Path, typer.Option(help="Folder of the store; created if missing.")],
    name: Annotated[str | None, typer.Option(help="Name of the bundle; default: dataset, recipe and time.")] = None,
    activate: Annotated[bool, typer.Option("--activate", help="Make it the store's active bundle.")] = False,
    vectors: Annotated[
        Literal["auto", "float32", "int8"],
        typer.Option(help="Precision of the label vectors; auto: int8, unless it loses quality."),
    ] = "auto",
    index: Annotated[
        Literal["auto", "hnsw", "exact", "milvus"],
        typer.Option(help="Kind of the index; exact compares all labels, milvus asks a server. auto: hnsw or exact."),
    ] = "auto",
    width: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Numbers per label in the index; default: 0.87 of the variance, measured from 200,000 labels on.",
        ),
    ] = None,
    parquet: Annotated[
        Path | None, typer.Option(help="With --index milvus: also write a file for Milvus' bulk insert.")
    ] = None,
    m: Annotated[
        int | None,
        typer.Option(
            "--m",
            min=2,
            max=256,
            help="Links per node of the HNSW index; default: 32, measured from 200,000 labels on.",
        ),
    ] = None,
    ef_construction: Annotated[
        int | None,
        typer.Option(
            min=8, help="Candidates examined when a node is linked; default: 200, measured from 200,000 labels on."
        ),
    ] = None,
    precision: Annotated[
        Literal["float32", "float16", "int8"],
        typer.Option(help="Precision of the query encoder: int8 is faster on CPUs, float16 on GPUs."),
    ] = "float32",
    threads: Annotated[int | None, typer.Option(min=1, help="Number of threads; default: one per core.")] = None,
) -> None:
    """Build a bundle from a checkpoint and publish it in a store.

    A bundle contains ONNX encoders, label vectors and an index. The command fails if the bundle's answers differ from
    the checkpoint's; the store is then unchanged.
    """
    from export.build import export as build
    from export.job import ExportSettings
    from retrieval.bundle.signatures import trusted_keys
    from retrieval.errors import BadInput
    from retrieval.open import open_store
    from retrieval.system.console import Console
    from training.monitoring.console import ConsoleCallback

    if parquet is not None and index != "milvus":
        raise BadInput(f"--parquet writes the rows of an index in Milvus, but --index is {index}. Add --index milvus.")
    if activate and index == "milvus":
        raise BadInput(
            "--activate needs the vectors in Milvus first. Export without it, then use `diptych bundles load` and "
            "`diptych bundles activate`."
        )
    opened = open_store(store, trusted=trusted_keys())
    settings = ExportSettings(
        vectors=vectors, index=index, parquet=parquet, width=width, m=m, ef_construction=ef_construction,
        threads=threads,
        precision=precision,
    )  # fmt: skip
    with ConsoleCallback() as callback:
        exported = build(checkpoint, opened, name=name, settings=settings, stage=callback.stage)
    if activate:
        opened.activate(exported.name)
    state = "Active" if activate else "Published"
    Console().print(*_tables(exported), f"{state}: {exported.path}", soft_wrap=True)


def _tables(exported: "ExportedBundle") -> "tuple[Table, Table]":
    """Return the checks that the bundle passed, and the index's recall by classifier weight."""
    from rich.box import SIMPLE
    from rich.table import Table

    from training.evaluation.headline import EXPORT_METRICS

    manifest, labels = exported.manifest, exported.manifest.labels
    table = Table("check", "result", "measured on", title=exported.name, title_justify="left", box=SIMPLE)
    parity = manifest.parity
    queries = f"{parity.queries:,} queries, up to {parity.longest_tokens:,} tokens"
    table.add_row("smallest cosine, queries", f"{parity.query_cosine:.6f}", queries)
    if parity.labels:
        table.add_row("smallest cosine, labels", f"{parity.label_cosine:.6f}", f"{parity.labels:,} labels")
    if (reduced := manifest.reduced) is not None:
        values = f"{reduced.p_at_1:.2f} ({reduced.float32_p_at_1:.2f})"
        table.add_row(f"P@1, {manifest.precision} (float32)", values, f"{reduced.queries:,} queries, exact search")
        for speed in reduced.speeds:
            values = f"{speed.reduced:,.0f} ({speed.float32:,.0f})"
            table.add_row(
                f"queries per second, {manifest.precision} (float32)", values, f"1 thread, batches of {speed.batch}"
            )
    if (quality := manifest.quality) is not None:
        for metric in EXPORT_METRICS:
            values = f"{quality.bundle[metric]:.2f} ({quality.checkpoint[metric]:.2f})"
            table.add_row(f"{metric}, bundle (checkpoint)", values, f"{quality.queries:,} queries")
        for metric, value in (quality.seen_labels or {}).items():
            if metric in EXPORT_METRICS:
                table.add_row(f"{metric}, bundle", f"{value:.2f}", "labels with training positives only")
    if (memory := manifest.memory) is not None:
        table.add_row(
            "smallest cosine, memory", f"{memory.parity_cosine:.6f}", f"{memory.parity_queries:,} training queries"
        )
        ef = memory.ef_search.ef
        measured = f"{memory.recall_queries:,} queries, {'all are compared' if ef is None else f'ef {ef}'}"
        table.add_row(f"recall of {memory.neighbours} training queries", f"{memory.ef_search.recall:.4f}", measured)
        table.add_row("training queries in memory", f"{memory.queries:,}", f"weight {memory.weight:g}")
    golden = exported.golden
    table.add_row("golden answers, overlap@10", f"{golden.overlap_at_10:.4f}", f"{golden.queries:,} queries")
    counts = f"{labels.trained:,} trained, {labels.imputed:,} imputed"
    table.add_row("labels", f"{labels.count:,}", counts)
    for kind, count in (("with the text of an earlier label", labels.duplicates), ("with a zero vector", labels.zeros)):
        if count:
            table.add_row(f"labels {kind}", f"{count:,}", "")
    table.add_row("precision of label vectors", manifest.vectors, "")
    table.add_row("size", f"{sum(entry.bytes for entry in manifest.files.values()) / 1e6:,.1f} MB", "")
    return table, _recall_table(exported) if manifest.cascade is None else _levels_table(manifest.cascade)


def _levels_table(cascade: "CascadeFacts") -> "Table":
    """Return the levels of a cascade, and the recall of its shortlists."""
    from rich.box import SIMPLE
    from rich.table import Table

    title = (
        f"Levels of the label tree. Recall of the shortlists against exact search, over {cascade.recall_queries:,} "
        f"queries:\n@1 {cascade.recall_at_1:.4f}, @10 {cascade.recall_at_10:.4f}, @100 {cascade.recall_at_100:.4f}"
    )
    if cascade.exact_is_worse:
        title += f"; exact search has a lower quality (P@1 {cascade.exact['P@1']:.2f})"
    table = Table(title=title, title_justify="left", box=SIMPLE)
    for column in ("level", "nodes", "shortlist", "in the checkpoint", "true nodes kept"):
        table.add_column(column, no_wrap=True)
    for number, level in enumerate(cascade.levels):
        sizes = (f"{level.shortlist:,}", f"{cascade.checkpoint_shortlist[number]:,}") if level.shortlist else ("", "")
        table.add_row(str(number), f"{level.nodes:,}", *sizes, f"{100 * (level.shortlist_recall or 0):.1f} %")
    return table


def _recall_table(exported: "ExportedBundle") -> "Table":
    from rich.box import SIMPLE
    from rich.table import Table

    from retrieval.bundle.facts import LARGE_K

    index = exported.manifest.index
    if index.kind == "exact":
        return Table(title="The index is exact: every search compares all labels.", title_justify="left", box=SIMPLE)
    title = (
        f"Recall of the index against exact search, over {index.recall_queries:,} queries and\n"
        f"{index.recall_label_texts:,} label texts; ef: candidates examined for k ≤ 10 and for k = 100"
    )
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 2, 0, 0))
    for column in ("weight", "queries @1", "@10", "@100", "labels @10", "@100", "ef"):
        table.add_column(column, no_wrap=True)
    for setting in index.ef_search:
        default = " (default)" if setting.weight == exported.manifest.classifier_weight else ""
        recalls = (
            setting.recall_at_1, setting.recall_at_10, setting.recall_at_100, setting.label_text_recall_at_10,
            setting.label_text_recall_at_100,
        )  # fmt: skip
        candidates = ", ".join(str(ef) if ef else "all labels" for ef in (setting.ef, setting.at(LARGE_K)))
        table.add_row(f"{setting.weight:g}{default}", *(f"{recall:.4f}" for recall in recalls), candidates)
    return table
