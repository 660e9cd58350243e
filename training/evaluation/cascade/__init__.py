"""Rank labels by a cascade, and validate its epochs."""
