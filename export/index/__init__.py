"""Build the index of label vectors: projection, precision, graph, kind, and the recall gate."""
