"""The command `diptych prepare`."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

COLUMNS, SPLITS, CLICKS, ROWS = "Columns", "Splits", "Clicks", "Rows"


def prepare(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="CSV, TSV, JSONL or Parquet: file, folder, pattern or URL; or LF-* folder.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the dataset.")],
    labels: Annotated[str | None, typer.Option(help="Table of labels with ids, texts and attributes.")] = None,
    query_column: Annotated[
        str | None, typer.Option(rich_help_panel=COLUMNS, help="Column of the query; default: query.")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(rich_help_panel=COLUMNS, help="Column of the labels; default: labels, or label.")
    ] = None,
    label_text_column: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=COLUMNS,
            help="Column of the label's text, where the label is an id.",
        ),
    ] = None,
    clicks_column: Annotated[
        str | None,
        typer.Option(
            "--clicks-column", "--count-column", rich_help_panel=COLUMNS,
            help="Column of the clicks of a row; without it, each row is a click.",
        ),
    ] = None,
    impressions_column: Annotated[
        str | None, typer.Option(rich_help_panel=COLUMNS, help="Column of how often the label was shown.")
    ] = None,
    position_column: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=COLUMNS,
            help="Column of the position, from 1; clicks are weighted by 1 / examination probability.",
        ),
    ] = None,
    date_column: Annotated[
        str | None, typer.Option(rich_help_panel=COLUMNS, help="Column of the day; default: date, if it exists.")
    ] = None,
    source_column: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=COLUMNS,
            help="Column of the source of a click, such as a user; see --max-share.",
        ),
    ] = None,
    attribute_column: Annotated[
        list[str] | None,
        typer.Option(
            "--attribute-column", rich_help_panel=COLUMNS,
            help="Column of the log with an attribute of the label; the latest value wins. May be repeated.",
        ),
    ] = None,
    split_column: Annotated[
        str | None, typer.Option(rich_help_panel=COLUMNS, help="Column of the split; default: split, if it exists.")
    ] = None,
    label_key: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=COLUMNS,
            help="Column of --labels that the source refers to; default: id, or the text.",
        ),
    ] = None,
    label_text: Annotated[
        str | None, typer.Option(rich_help_panel=COLUMNS, help="Column of --labels with the texts; default: text.")
    ] = None,
    test_from: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%d"], rich_help_panel=SPLITS,
            help="First day of test; the days before it are validation and training.",
        ),
    ] = None,
    test_days: Annotated[
        int | None, typer.Option(min=1, rich_help_panel=SPLITS, help="Number of days of test, at the end of the log.")
    ] = None,
    test: Annotated[
        float | None,
        typer.Option(
            min=0, max=0.99, rich_help_panel=SPLITS,
            help="Share of queries for test, if the source has no splits; default: 0.1.",
        ),
    ] = None,
    validation: Annotated[
        float | None,
        typer.Option(
            min=0, max=0.99, rich_help_panel=SPLITS,
            help="Share of training queries for validation, about 2,000 at most; default: 0.1.",
        ),
    ] = None,
    min_clicks: Annotated[
        int | None,
        typer.Option(
            "--min-clicks", "--min-count", min=1, rich_help_panel=CLICKS,
            help="Fewest clicks of a positive; default: 1. Pairs without clicks are exposures.",
        ),
    ] = None,
    min_ctr: Annotated[
        float | None,
        typer.Option(
            min=0, max=0.99, rich_help_panel=CLICKS,
            help="Lowest click rate of a positive, smoothed by 10 impressions at the log's average rate; default: 0.",
        ),
    ] = None,
    half_life_days: Annotated[
        float | None,
        typer.Option(
            min=0.01, rich_help_panel=CLICKS,
            help="A click counts half after so many days; default: none (clicks do not age).",
        ),
    ] = None,
    max_share: Annotated[
        float | None,
        typer.Option(
            min=0.0001, max=1, rich_help_panel=CLICKS,
            help="Largest share of a query's clicks from one source; default with --source-column: 0.2.",
        ),
    ] = None,
    examination: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=CLICKS,
            help="Table with the columns position and probability; default: estimated from the log.",
        ),
    ] = None,
    min_label_count: Annotated[
        int | None,
        typer.Option(
            min=0, rich_help_panel=CLICKS,
            help="Leave out labels with fewer rows outside test; default: 0.",
        ),
    ] = None,
    separator: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=ROWS,
            help="Separator of CSV and TSV; default: detected from the header.",
        ),
    ] = None,
    quoting: Annotated[
        Literal["auto", "csv", "none"] | None,
        typer.Option(
            rich_help_panel=ROWS,
            help="csv: quotes enclose cells; none: quotes are text; auto (default): csv, but none for most .tsv.",
        ),
    ] = None,
    text: Annotated[
        Literal["title", "title+content"] | None,
        typer.Option(
            rich_help_panel=ROWS,
            help="LF-* only: fields of the text.",
        ),
    ] = None,
    max_characters: Annotated[
        int | None,
        typer.Option(
            min=1, rich_help_panel=ROWS,
            help="Rows with a longer text are bad rows; default: 1,000,000.",
        ),
    ] = None,
    skip_bad_rows: Annotated[
        bool,
        typer.Option(
            "--skip-bad-rows", rich_help_panel=ROWS,
            help="Leave out bad rows; they are counted and listed.",
        ),
    ] = False,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the aggregated files of a click log; the next run reads only new files.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the dataset; default: that of the source.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace another dataset in --out.")] = False,
) -> None:  # fmt: skip
    """Turn queries, labels and clicks into a dataset. Every row is checked and counted.

    The source is a file, a folder of part files or of daily partitions, a pattern such as 'log/*.csv.gz', a URL, or a
    raw LF-* folder of the XMC repository.

    A click log has a row per (query, label) pair. The columns query, label, label_text, clicks, impressions, position,
    date and split are recognised by their names; options name others, and "none" ignores one. A file source.yaml next
    to the log may contain all options, such as `query_column: search_term`.

    JSON Lines and Parquet may have a row per query with a list of labels instead.

    The output gives rows read = rows written + rows skipped, with the reason of each skipped row.

    Without dates or a split column, the text of a query decides its split, regardless of case and accents.
    """
    from retrieval.system.console import Console
    from training.prepare.prepare import prepare as run
    from training.prepare.settings import merged_settings
    from training.prepare.source_yaml import read_source_yaml
    from training.prepare.summary import show

    options = {
        "query_column": query_column, "label_column": label_column, "label_text_column": label_text_column,
        "clicks_column": clicks_column, "impressions_column": impressions_column, "position_column": position_column,
        "date_column": date_column, "source_column": source_column, "attribute_column": attribute_column or None,
        "split_column": split_column, "label_key": label_key, "label_text": label_text,
        "test_from": test_from.date() if test_from else None, "test_days": test_days, "test": test,
        "validation": validation, "min_clicks": min_clicks, "min_ctr": min_ctr, "half_life_days": half_life_days,
        "max_share": max_share, "examination": examination, "min_label_count": min_label_count,
        "separator": separator, "quoting": quoting, "text": text, "max_characters": max_characters,
        "skip_bad_rows": skip_bad_rows or None,
    }  # fmt: skip
    settings_file = read_source_yaml(source)
    settings = merged_settings(options, settings_file)
    dataset, written = run(source, out, settings, labels=labels, name=name, force=force, cache=cache)
    show(
        dataset, Console(markup=False), written=written, settings_file=settings_file.location if settings_file else None
    )
