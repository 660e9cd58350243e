"""Kill store commands with SIGKILL at random moments.

`python -m tests.support.programs.kill_runner TIMES SEED FOLDER` prints one line of JSON per kill: the command that
died, what it left behind, and what is wrong with the store after the next command. Each time a forked process runs
commands without end until it is killed.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import retrieval.retriever  # noqa: F401  # so that the forked processes need not import it
from retrieval import open_bundle
from retrieval.bundle.verified_files import verify_bundle
from retrieval.errors import BundleError
from retrieval.open import open_store
from retrieval.store.local import Store
from tests.support.bundles import make_bundle
from tests.support.forked import forked, start_forked

COMMANDS = ("publish", "activate", "rollback", "prune")
LONGEST_SECONDS = 0.05  # before a kill: a few commands
EXPECTED_FILES = {"CURRENT", "HISTORY", ".lock", "bundles", ".incoming"}


def run(store: Store, bundle: Path, command: str, draw: random.Random) -> None:
    if command == "publish":
        with store.incoming() as folder:
            store.publish(shutil.copytree(bundle, folder, dirs_exist_ok=True), uuid.uuid4().hex)
    elif command == "activate":
        store.activate(draw.choice(store.bundles()))
    elif command == "rollback":
        store.rollback()
    else:
        store.prune(draw.randrange(3))


def command_killed(store: Store, bundle: Path, first: int, draw: random.Random) -> str:
    """Run commands in a process, kill it, and return the command that was running."""
    read_end, write_end = os.pipe()
    seconds = draw.random() * LONGEST_SECONDS

    def work() -> None:
        for number in rounds(first):
            os.write(write_end, bytes([number]))
            with suppress(BundleError):  # nothing to roll back to, or just removed
                run(store, bundle, COMMANDS[number], draw)

    child = start_forked(work)
    os.close(write_end)
    with open(read_end, "rb", buffering=0) as pipe:
        begun = pipe.read(1)  # the process has begun to work
        time.sleep(seconds)  # the random moment itself, not a wait for anything
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while more := pipe.read(4096):
            begun = more
    return COMMANDS[begun[-1]]


def rounds(first: int) -> Iterator[int]:
    while True:
        yield first % len(COMMANDS)
        first += 1


def fault(path: Path) -> tuple[str, str]:
    """Return what is wrong with a store after one more command."""
    store = open_store(path)
    store.prune(1000)
    if unexpected := {item.name for item in path.iterdir()} - EXPECTED_FILES:
        return "fault", f"{unexpected} is in the folder of the store"
    if left := list((path / ".incoming").iterdir()):
        return "fault", f"{left} was not removed"
    for name in store.bundles():
        store.verify(name)
    if (previous := store.previous()) and previous not in store.bundles():
        return "fault", f"{previous} cannot be rolled back to"
    with open_bundle(path) as retriever:
        return ("valid", retriever.name) if retriever.check_golden().passed else ("fault", "answers differ")


def main(times: int, seed: int, folder: Path) -> None:
    draw = random.Random(seed)
    # Bundles are verified, but not opened: that would take most of a command's time, and few kills would hit a write.
    store, bundle = Store(folder / "store", verify_bundle), folder / "valid"

    def prepare() -> tuple[str, str]:
        make_bundle(bundle, ["red shoes", "rain"])
        with store.incoming() as incoming:
            store.publish(shutil.copytree(bundle, incoming, dirs_exist_ok=True), "first")
        store.activate("first")
        return "valid", "first"

    assert forked(prepare)[0] == "valid"
    for number in range(times):
        command = command_killed(store, bundle, number, draw)
        left = sum(1 for _ in (store.path / ".incoming").iterdir())
        outcome, how = forked(lambda: fault(store.path))
        print(json.dumps({"command": command, "left": left, "outcome": outcome, "how": how}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
