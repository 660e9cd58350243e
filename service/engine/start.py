"""Start an engine process: `python -m service.engine.start DESCRIPTOR FOLDER ORDERS`, run by `service.engine.client`.

While another bundle is served, slow work runs at low priority, imports included.
"""

import importlib
import os
import sys
from pathlib import Path

from retrieval.system.low_priority import at_once, gently
from retrieval.system.sandbox import confine, limit, sandbox_mode
from service.engine.options import Orders
from service.engine.parent_death import end_with_parent

BEHIND_THE_FRONT = 5  # niceness: with few cores the front goes first, because it must refuse what an engine cannot do


def restrict(folder: Path, orders: Orders) -> None:
    """Limit and confine this process. Call it before any import that starts a thread.

    CUDA reserves far more memory than it uses and opens devices and sockets, so only the general limits apply there.
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
    engine = (gently if orders.behind else at_once)(lambda: importlib.import_module("service.engine.worker"))
    sys.exit(engine.main(int(descriptor), folder, orders))
