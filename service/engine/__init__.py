"""The engine: a process that holds one bundle and answers batches."""
