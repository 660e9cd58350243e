"""Answers: HTTP in front, one engine process for each opened bundle behind it. Imports neither torch nor training."""
