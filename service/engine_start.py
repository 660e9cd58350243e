"""Where an engine's process begins: what takes long is done behind everybody else's work, its imports too.

`python -m service.engine_start DESCRIPTOR FOLDER THREADS SEARCH_THREADS LARGEST_BATCH TRUSTED_KEYS`, as
`service.process` starts it.
"""

import importlib
import os
import sys

from retrieval.gently import gently

BEHIND_THE_FRONT = 5  # where cores are short the front goes first: it must still refuse what an engine cannot do

if __name__ == "__main__":
    os.nice(BEHIND_THE_FRONT)
    engine = gently(lambda: importlib.import_module("service.engine"))
    sys.exit(engine.main(sys.argv[1:]))
