"""Click logs: parts into blocks, blocks into weighted pairs, pairs into the rows of a dataset."""
