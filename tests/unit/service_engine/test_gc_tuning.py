"""The garbage collector of a running service."""

import gc

from service.engine.gc_tuning import freeze_gc


def test_full_collections_traverse_only_objects_that_came_after() -> None:
    """Every full garbage collection would traverse all imported modules, and stop all answers for 50 ms."""
    before = gc.get_threshold()
    try:
        freeze_gc()
        later: list[object] = []
        tracked = gc.get_objects()
        assert any(one is later for one in tracked)
        assert len(tracked) < gc.get_freeze_count() / 10
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
