"""Run a command that blocks at one stage until it is stopped.

Usage: `python -m tests.support.programs.stopped_at STAGE HOW WORD...`

STAGE is a function as module:name. When the command calls it, this program prints "reached" and blocks: in Python
(`python`), in native code that does not handle signals (`native`), or after calling the function (`after`). The words
are the command line of `diptych`.
"""

import hashlib
import signal
import sys
from importlib import import_module
from typing import Any

import diptych


def main() -> int:
    stage, how, *words = sys.argv[1:]
    module, _, name = stage.partition(":")
    owner: Any = import_module(module)
    *classes, name = name.split(".")
    for class_name in classes:
        owner = getattr(owner, class_name)
    original = getattr(owner, name)

    def block(*arguments: Any, **more: Any) -> None:
        if how == "after":
            original(*arguments, **more)
        print("reached", flush=True)
        if how == "native":
            hashlib.pbkdf2_hmac("sha256", b"", b"", (1 << 31) - 1)  # for half an hour
        while True:
            signal.pause()

    setattr(owner, name, block)
    sys.argv = ["diptych", *words]
    return diptych.main()


if __name__ == "__main__":
    sys.exit(main())
