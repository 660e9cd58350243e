"""The store under random sequences of commands, each of which may be killed at any of its writes."""

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrieval.errors import BundleError
from retrieval.sandboxed_opening import verify_in_process
from retrieval.store.local import Store
from tests.support.bundles import make_bundle

NAMES = ("a", "b", "c", "d")
COMMANDS = st.one_of(
    st.tuples(st.sampled_from(["publish", "activate"]), st.sampled_from(NAMES)),
    st.tuples(st.just("rollback"), st.none()),
    st.tuples(st.just("prune"), st.integers(0, 2)),
)


class Death(BaseException):
    """The process ends here."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "words", ["red shoes", "rain"])


def run(store: Store, bundle: Path, command: str, argument: str | int | None) -> None:
    if command == "publish":
        with store.incoming() as folder:
            store.publish(shutil.copytree(bundle, folder, dirs_exist_ok=True), str(argument))
    elif command == "prune":
        store.prune(int(str(argument)))
    elif command == "activate":
        store.activate(str(argument))
    else:
        store.rollback()


@given(st.lists(st.tuples(COMMANDS, st.integers(0, 6)), max_size=12))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_a_valid_bundle_stays_active_after_any_kill(
    bundle: Path, steps: list[tuple[tuple[str, str | int | None], int]]
) -> None:
    """If it fails, some sequence of commands, or a crash in one, leaves a store that no service can open."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        store = Store(Path(folder) / "store", verify_in_process)
        for (command, argument), survives in steps:
            before = store.active()
            dying(patch, survives)
            with suppress(BundleError, Death):
                run(store, bundle, command, argument)
            patch.undo()
            active = store.active()
            if before is not None:
                assert active is not None
            if active is not None:
                store.verify(active)
            for name in store.bundles():
                store.verify(name)
            if command in ("publish", "prune"):
                assert active == before
            previous = store.previous()
            assert previous is None or previous in store.bundles()


def dying(patch: pytest.MonkeyPatch, survives: int) -> None:
    """Let the process die at its sixth rename or earlier; 6 lets it live."""
    left = [survives]

    def dies(method: object) -> object:
        def step(*names: object, **folders: object) -> object:
            if left[0] == 0:
                raise Death
            left[0] -= 1 if survives < 6 else 0
            return method(*names, **folders)  # type: ignore[operator]

        return step

    for name in ("rename", "replace"):
        patch.setattr(os, name, dies(getattr(os, name)))


@given(st.lists(st.sampled_from(NAMES), min_size=1, max_size=10))
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_rolling_back_is_the_reverse_of_activating(bundle: Path, activated: list[str]) -> None:
    """If it fails, rolling back several times does not retrace what was active."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store", verify_in_process)
        for name in NAMES:
            run(store, bundle, "publish", name)
        for name in activated:
            store.activate(name)
        steps = [name for place, name in enumerate(activated) if not place or name != activated[place - 1]]
        for name in reversed(steps[:-1]):
            assert store.rollback() == name
        assert store.previous() is None
