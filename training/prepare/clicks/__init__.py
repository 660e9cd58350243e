"""Click logs: parts into cells, cells into weighted pairs, pairs into the rows of a dataset."""
