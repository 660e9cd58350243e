"""Build self-contained HTML pages: the common style, charts, and the page about a dataset."""
