"""Build self-contained HTML pages: the common style, charts, and the page about a dataset."""

DATASET_PAGE = "dataset.html"  # in the folder of the dataset
