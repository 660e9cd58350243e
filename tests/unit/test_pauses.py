"""The garbage collector of a running service."""

import gc

from service.engine.gc_tuning import settle


def test_full_collections_look_only_at_what_came_after() -> None:
    """If it fails, every full collection looks at all that was ever imported, and stops all answers for 50 ms."""
    before = gc.get_threshold()
    try:
        settle()
        later: list[object] = []
        looked_at = gc.get_objects()
        assert any(one is later for one in looked_at)
        assert len(looked_at) < gc.get_freeze_count() / 10
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
