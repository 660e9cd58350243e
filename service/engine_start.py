"""Where an engine's process begins. Beside a bundle that is served, what takes long gives way, its imports too.

`python -m service.engine_start DESCRIPTOR FOLDER ORDERS`, as `service.process` starts it.
"""

import importlib
import os
import sys
from pathlib import Path

from retrieval.gently import at_once, gently
from retrieval.sandbox import confine, limit, sandbox_mode
from service.orders import Orders
from service.parent_death import end_with_parent

BEHIND_THE_FRONT = 5  # where cores are short the front goes first: it must still refuse what an engine cannot do


def restrict(folder: Path, orders: Orders) -> None:
    """Limit and confine this process, before it imports anything that starts a thread.

    CUDA reserves far more memory than it uses and opens devices and sockets, so with it no limit holds.
    """
    if orders.provider != "cpu":
        limit()
        return
    limit(orders.data_bytes, file_bytes=None if orders.sandbox == "off" else orders.file_bytes)
    confine([folder], sandbox_mode(orders.sandbox))


if __name__ == "__main__":
    descriptor, folder, written = sys.argv[1:]
    orders = Orders.read(written)
    end_with_parent(orders.front)
    os.nice(BEHIND_THE_FRONT)
    restrict(Path(folder), orders)
    engine = (gently if orders.behind else at_once)(lambda: importlib.import_module("service.engine"))
    sys.exit(engine.main(int(descriptor), folder, orders))
