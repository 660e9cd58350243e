"""`diptych export`: build a verified bundle from a checkpoint."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from export.build import Built

app = typer.Typer()


@app.command(
    epilog="Example:\n"
    "  diptych export checkpoint --store store --activate\n"
    "  diptych export checkpoint --store store --precision int8"
)
def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="Folder that `diptych train` made.")],
    store: Annotated[Path, typer.Option(help="Folder of the store; made when it is not there.")],
    name: Annotated[str | None, typer.Option(help="Name of the bundle; default: dataset, recipe and time.")] = None,
    activate: Annotated[bool, typer.Option("--activate", help="Make it the store's active bundle.")] = False,
    m: Annotated[
        int,
        typer.Option(
            "--m", min=2, max=256, help="Links of a node of the index graph; more find better and take memory."
        ),
    ] = 32,
    ef_construction: Annotated[
        int, typer.Option(min=8, help="Candidates when a node is linked; more find better and build slower.")
    ] = 200,
    precision: Annotated[
        Literal["float32", "float16", "int8"],
        typer.Option(help="Of the query encoder's numbers: int8 for CPUs, float16 for GPUs."),
    ] = "float32",
    threads: Annotated[int | None, typer.Option(min=1, help="Native threads; default: all cores.")] = None,
) -> None:
    """Build a bundle (encoders, vectors, index) and prove it against its checkpoint before it is published."""
    from export.build import Settings
    from export.build import export as build
    from retrieval.bundle.signatures import trusted_keys
    from retrieval.open import open_store
    from retrieval.system.console import Console
    from training.monitoring.console import ConsoleListener

    opened = open_store(store, trusted=trusted_keys())
    settings = Settings(m=m, ef_construction=ef_construction, threads=threads, precision=precision)
    with ConsoleListener() as listener:
        built = build(checkpoint, opened, name=name, settings=settings, stage=listener.stage)
    if activate:
        opened.activate(built.name)
    Console().print(_table(built), f"{'Active' if activate else 'Published'}: {built.path}", soft_wrap=True)


def _table(built: "Built") -> "Table":
    from rich.box import SIMPLE
    from rich.table import Table

    from retrieval.bundle.facts import LARGE_K

    manifest = built.manifest
    table = Table("what", "figure", "over", title=built.name, title_justify="left", box=SIMPLE)
    parity, queries = manifest.parity, f"{manifest.index.recall_queries:,} queries"
    over = f"{parity.queries:,} queries of up to {parity.longest_tokens:,} tokens"
    table.add_row("parity, least cosine of a query", f"{parity.query_cosine:.6f}", over)
    table.add_row("parity, least cosine of a label", f"{parity.label_cosine:.6f}", f"{parity.labels:,} labels")
    if (reduced := manifest.reduced) is not None:
        over = f"{reduced.queries:,} queries, exact search"
        table.add_row(
            f"P@1, {manifest.precision} (float32)", f"{reduced.p_at_1:.2f} ({reduced.float32_p_at_1:.2f})", over
        )
        for speed in reduced.speeds:
            figures = f"{speed.reduced:,.0f} ({speed.float32:,.0f})"
            table.add_row(
                f"queries a second, {manifest.precision} (float32)", figures, f"1 thread, batches of {speed.batch}"
            )
    for effort in manifest.index.ef_search:
        chosen = " (default)" if effort.weight == manifest.classifier_weight else ""
        where = f"at weight {effort.weight:g}{chosen}"
        ways = [f"ef {ef}" if ef else "every label is compared" for ef in (effort.ef, effort.at(LARGE_K))]
        table.add_row(
            f"recall@1, @10 {where}", f"{effort.recall_at_1:.4f}, {effort.recall_at_10:.4f}", f"{queries}, {ways[0]}"
        )
        table.add_row(f"recall@100 {where}", f"{effort.recall_at_100:.4f}", f"{queries}, {ways[1]}")
        recalls = f"{effort.label_text_recall_at_10:.4f}, {effort.label_text_recall_at_100:.4f}"
        table.add_row(f"recall@10, @100 {where}", recalls, f"{manifest.index.recall_label_texts:,} label texts")
    if manifest.quality is not None:
        own, bundle = manifest.quality.checkpoint, manifest.quality.bundle
        for figure in ("P@1", "P@5", "PSP@5"):
            figures = f"{bundle[figure]:.2f} ({own[figure]:.2f})"
            table.add_row(f"{figure}, bundle (checkpoint)", figures, f"{manifest.quality.queries:,} queries")
    table.add_row(
        "golden answers, overlap@10", f"{built.golden.overlap_at_10:.4f}", f"{built.golden.queries:,} queries"
    )
    labels = manifest.labels
    table.add_row(
        "labels", f"{labels.count:,}", f"{labels.trained:,} trained, {labels.imputed:,} from their neighbours"
    )
    for kind, many in (("text of an earlier label", labels.duplicates), ("vector of length zero", labels.zeros)):
        if many:
            table.add_row(f"labels with the {kind}", f"{many:,}", "")
    table.add_row("size", f"{sum(entry.bytes for entry in manifest.files.values()) / 1e6:,.1f} MB", "")
    return table
