"""The recipe: every option of a training run."""
