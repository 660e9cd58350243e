"""The unified model: encoders, heads, classifier rows and tokenizers."""
