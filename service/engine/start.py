"""Start an engine process: `python -m service.engine.start DESCRIPTOR FOLDER OPTIONS`, run by `service.engine.client`.

With `low_priority`, slow work runs at low priority, imports included.
"""

import importlib
import os
import sys
from pathlib import Path

from retrieval.system.low_priority import at_low_priority, directly
from retrieval.system.sandbox import confine, limit, sandbox_mode
from service.engine.options import EngineOptions
from service.engine.parent_death import end_with_parent

NICENESS = 5  # with few cores the front goes first, because it must refuse what an engine cannot do


def restrict(folder: Path, options: EngineOptions) -> None:
    """Limit and confine this process. Call it before any import that starts a thread.

    CUDA reserves far more memory than it uses and opens devices and sockets, so only the general limits apply there.
    """
    if options.provider != "cpu":
        limit()
        return
    limit(options.data_bytes, file_bytes=None if options.sandbox == "off" else options.file_bytes)
    confine([folder], sandbox_mode(options.sandbox), may_fork=options.shared)


def main(descriptor: int, folder: str, options: EngineOptions) -> int:
    """Run the engine in this process; return its exit code."""
    end_with_parent(options.front_pid)
    os.nice(NICENESS)
    restrict(Path(folder), options)
    run = at_low_priority if options.low_priority else directly
    program = "service.engine.pool.host" if options.shared else "service.engine.worker"
    return int(run(lambda: importlib.import_module(program)).main(descriptor, folder, options))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], EngineOptions.from_json(sys.argv[3])))
