"""Search for a whole file of queries, and compare two bundles."""
