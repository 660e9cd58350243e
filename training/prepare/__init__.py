"""Turn a click log into a dataset: read, check, split and write."""
