"""Stores of bundles: a local folder, or a URL that is read through the local cache."""
