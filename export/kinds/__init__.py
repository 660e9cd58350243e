"""The kinds of bundles: label vectors with an HNSW index, and a cascade."""
