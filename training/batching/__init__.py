"""Form batches: training data, sampled positives, hard negatives, label queries and clusters."""
