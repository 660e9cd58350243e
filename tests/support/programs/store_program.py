"""Run one store command in a process with restrictions.

Usage: `python -m tests.support.programs.store_program COMMAND STORE ARGUMENT...`

With UID_FOR_TEST in the environment it gives up the rights of root first. Prints what it did,
or the BundleError, which is all that may come of it.
"""

import os
import sys
from pathlib import Path

import retrieval.retriever  # noqa: F401  # while the process may still read where the packages are installed
from retrieval.errors import BundleError
from retrieval.sandboxed_opening import verify_in_process
from retrieval.store.local import Store


def main(command: str, store: str, *arguments: str) -> None:
    if uid := os.environ.get("UID_FOR_TEST"):
        os.setgroups([])
        os.setuid(int(uid))
    opened = Store(store, verify_in_process)
    try:
        if command == "publish":
            opened.publish(Path(arguments[0]), arguments[1])
        elif command == "activate":
            opened.activate(arguments[0])
        elif command == "rollback":
            opened.rollback()
        elif command == "prune":
            opened.prune(0)
        print("done")
    except BundleError as error:
        print(error)


if __name__ == "__main__":
    main(*sys.argv[1:])
