"""What stands in the way of training, exporting and serving here, and what to do about it.

Nothing here needs more than the base install: what may be missing or broken is looked at in a child process.
"""
