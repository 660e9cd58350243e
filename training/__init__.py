"""Learns: UniDEC's Algorithm 1, from a prepared dataset to a checkpoint (torch, transformers)."""
