"""Pauses of Python's garbage collector, which in a full collection looks at every object, all that was imported too."""

import gc


def settle() -> None:
    """Count what lives now as permanent: later full collections look only at what came after (50 ms become 1 ms)."""
    gc.collect()
    gc.freeze()
