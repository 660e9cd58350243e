"""`diptych prepare`: the command that turns a source into a dataset."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def prepare(
    source: Annotated[Path, typer.Argument(help="CSV, TSV, JSONL or Parquet file, folder of parts, or LF-* folder.")],
    out: Annotated[Path, typer.Option(help="Folder to write the dataset to.")],
    query_column: Annotated[str | None, typer.Option(help="Column of the query; by default query.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of labels; by default labels or label.")] = None,
    split_column: Annotated[str | None, typer.Option(help="Column of the split; by default split, if there.")] = None,
    count_column: Annotated[str | None, typer.Option(help="Column of counts; a pair with count 0 is left out.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Table of labels: their ids, texts and attributes.")] = None,
    label_key: Annotated[
        str | None, typer.Option(help="Column of --labels that the source refers to; by default id, else the text.")
    ] = None,
    label_text: Annotated[
        str | None, typer.Option(help="Column of --labels with their texts; by default text.")
    ] = None,
    min_count: Annotated[
        int | None,
        typer.Option(min=0, help="Leave out pairs with a lower count; 1 with --count-column, else 0."),
    ] = None,
    min_label_count: Annotated[int, typer.Option(min=0, help="Leave out labels with fewer rows outside test.")] = 0,
    separator: Annotated[
        str | None, typer.Option(help="Character between cells of CSV and TSV; by default detected in the header.")
    ] = None,
    quoting: Annotated[
        Literal["auto", "csv", "none"],
        typer.Option(help="Quotes enclose cells (csv) or are text (none); auto: csv, but none for most .tsv."),
    ] = "auto",
    text: Annotated[Literal["title", "title+content"], typer.Option(help="LF-* only: fields of a text.")] = "title",
    test: Annotated[
        float, typer.Option(min=0, max=0.99, help="Share of queries cut as test, where the source has no splits.")
    ] = 0.1,
    validation: Annotated[
        float, typer.Option(min=0, max=0.99, help="Share of training queries cut as validation, about 2,000 at most.")
    ] = 0.1,
    max_characters: Annotated[int, typer.Option(min=1, help="A longer text is a bad row.")] = 1_000_000,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave bad rows out, counted and listed.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="The dataset's name; the source's unless given.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace another dataset in the folder.")] = False,
) -> None:  # fmt: skip
    """Turn queries, labels and clicks into a dataset; every row is checked and counted.

    A source is one file, a folder of part files, or a raw LF-* set of the XMC repository (a folder).

    CSV, TSV and Parquet have a row per (query, label) pair, or per query with a list of labels.

    JSON lines are {"query", "label"}, or {"query", "labels"} with "split", "exclude" and "id" where needed.

    Prints rows read = rows written + rows skipped, by reason, and checks the sum.

    Without a split column, a query's text decides its split; case and accents make no difference.

    So no query is in two splits, and splits are reproducible.
    """
    from retrieval.system.console import Console
    from training.prepare.prepare import PrepareSettings
    from training.prepare.prepare import prepare as run
    from training.prepare.summary import show

    settings = PrepareSettings(
        query_column=query_column, label_column=label_column, split_column=split_column, count_column=count_column,
        label_key=label_key, label_text=label_text, text=text, test=test, validation=validation, min_count=min_count,
        min_label_count=min_label_count, separator=separator, quoting=quoting, max_characters=max_characters,
        skip_bad_rows=skip_bad_rows,
    )  # fmt: skip
    dataset, written = run(source, out, settings, labels=labels, name=name, force=force)
    console = Console(markup=False)
    state = "written to" if written else "is up to date in"
    console.print(f"dataset {dataset.meta.name!r} {state} {out}\n", highlight=False, soft_wrap=True)
    show(dataset, console)
