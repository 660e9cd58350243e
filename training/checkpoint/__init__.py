"""Save and read checkpoints: weights, state to resume from, and the facts about a run."""
