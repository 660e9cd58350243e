"""Checkpoint → bundle: the last place that needs torch."""
