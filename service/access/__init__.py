"""Decide who may send requests: keys, addresses, host names and rate limits."""
