"""Pauses of Python's garbage collector, which in a full collection looks at every object, all that was imported too."""

import gc

YOUNG = 50_000  # new objects before anything is looked at: thousands of waiting requests are no garbage


def settle() -> None:
    """Count what lives now as permanent, and look for cycles seldom: what requests make is freed without it.

    A full collection of a service that has just started takes 50 ms, of which all answers of that moment would tell;
    with a full queue, looking took a third of the front's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, 10, 10)
