"""Run a command that waits at one stage until it is stopped: `python -m tests.support.stopped_at STAGE HOW WORD...`.

STAGE is a function as module:name. When the command calls it, this program prints "reached" and waits: in Python
(`python`), in native code that delays signals (`native`), or in Python after the function has run (`after`). The words
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
    for one in classes:
        owner = getattr(owner, one)
    original = getattr(owner, name)

    def wait(*arguments: Any, **more: Any) -> None:
        if how == "after":
            original(*arguments, **more)
        print("reached", flush=True)
        if how == "native":
            hashlib.pbkdf2_hmac("sha256", b"", b"", (1 << 31) - 1)  # for half an hour
        while True:
            signal.pause()

    setattr(owner, name, wait)
    sys.argv = ["diptych", *words]
    return diptych.main()


if __name__ == "__main__":
    sys.exit(main())
