"""Search an opened bundle: encoder, indexes, candidates and filters."""
