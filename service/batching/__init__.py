"""Queue requests fairly between callers and send them to an engine in batches."""
