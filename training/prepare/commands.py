"""The command `diptych prepare`."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def prepare(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="CSV, TSV, JSONL or Parquet file, folder of them, or LF-* folder."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the dataset.")],
    query_column: Annotated[str | None, typer.Option(help="Column of the query; default: query.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of the labels; default: labels, or label.")] = None,
    split_column: Annotated[str | None, typer.Option(help="Column of the split; default: split, if it exists.")] = None,
    count_column: Annotated[str | None, typer.Option(help="Column of click counts; pairs with 0 are left out.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Table of labels with ids, texts and attributes.")] = None,
    label_key: Annotated[
        str | None, typer.Option(help="Column of --labels that the source refers to; default: id, or the text.")
    ] = None,
    label_text: Annotated[
        str | None, typer.Option(help="Column of --labels with the texts; default: text.")
    ] = None,
    min_count: Annotated[
        int | None,
        typer.Option(min=0, help="Leave out pairs with a lower count; default: 1 with --count-column, else 0."),
    ] = None,
    min_label_count: Annotated[int, typer.Option(min=0, help="Leave out labels with fewer rows outside test.")] = 0,
    separator: Annotated[
        str | None, typer.Option(help="Separator of CSV and TSV; default: detected from the header.")
    ] = None,
    quoting: Annotated[
        Literal["auto", "csv", "none"],
        typer.Option(help="csv: quotes enclose cells; none: quotes are text; auto: csv, but none for most .tsv."),
    ] = "auto",
    text: Annotated[Literal["title", "title+content"], typer.Option(help="LF-* only: fields of the text.")] = "title",
    test: Annotated[
        float, typer.Option(min=0, max=0.99, help="Share of queries for test, if the source has no splits.")
    ] = 0.1,
    validation: Annotated[
        float, typer.Option(min=0, max=0.99, help="Share of training queries for validation, about 2,000 at most.")
    ] = 0.1,
    max_characters: Annotated[int, typer.Option(min=1, help="Rows with a longer text are bad rows.")] = 1_000_000,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave out bad rows; they are counted and listed.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="Name of the dataset; default: that of the source.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace another dataset in --out.")] = False,
) -> None:  # fmt: skip
    """Turn queries, labels and clicks into a dataset. Every row is checked and counted.

    The source is a file, a folder of part files, or a raw LF-* folder of the XMC repository.

    CSV, TSV and Parquet have a row per (query, label) pair, or per query with a list of labels.

    JSON Lines have {"query", "label"}, or {"query", "labels"} with optional "split", "exclude" and "id".

    The output gives rows read = rows written + rows skipped, with the reason of each skipped row.

    Without a split column, the text of a query decides its split, regardless of case and accents.

    No query is in two splits, and splits are reproducible.
    """
    from retrieval.system.console import Console
    from training.prepare.inputs import PrepareSettings
    from training.prepare.prepare import prepare as run
    from training.prepare.summary import show

    settings = PrepareSettings(
        query_column=query_column, label_column=label_column, split_column=split_column, count_column=count_column,
        label_key=label_key, label_text=label_text, text=text, test=test, validation=validation, min_count=min_count,
        min_label_count=min_label_count, separator=separator, quoting=quoting, max_characters=max_characters,
        skip_bad_rows=skip_bad_rows,
    )  # fmt: skip
    dataset, written = run(source, out, settings, labels=labels, name=name, force=force)
    show(dataset, Console(markup=False), written=written)
