"""Where an engine's process begins. Beside a bundle that is served, what takes long gives way, its imports too.

`python -m service.engine_start DESCRIPTOR FOLDER ORDERS`, as `service.process` starts it.
"""

import importlib
import os
import sys

from retrieval.gently import at_once, gently
from service.orders import Orders
from service.parent_death import end_with_parent

BEHIND_THE_FRONT = 5  # where cores are short the front goes first: it must still refuse what an engine cannot do

if __name__ == "__main__":
    descriptor, folder, written = sys.argv[1:]
    orders = Orders.read(written)
    end_with_parent(orders.front)
    os.nice(BEHIND_THE_FRONT)
    engine = (gently if orders.behind else at_once)(lambda: importlib.import_module("service.engine"))
    sys.exit(engine.main(int(descriptor), folder, orders))
