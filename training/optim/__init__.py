"""Losses, optimizers, GradCache and distributed training: one training step."""
