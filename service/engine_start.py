"""Where an engine's process begins. Beside a bundle that is served, what takes long gives way, its imports too.

`python -m service.engine_start DESCRIPTOR FOLDER PACE THREADS SEARCH_THREADS LARGEST_BATCH TRUSTED_KEYS`, as
`service.process` starts it; PACE is "behind" or "at-once".
"""

import importlib
import os
import sys

from retrieval.gently import at_once, gently

BEHIND_THE_FRONT = 5  # where cores are short the front goes first: it must still refuse what an engine cannot do

if __name__ == "__main__":
    os.nice(BEHIND_THE_FRONT)
    descriptor, folder, pace, *rest = sys.argv[1:]
    behind = pace == "behind"
    engine = (gently if behind else at_once)(lambda: importlib.import_module("service.engine"))
    sys.exit(engine.main(descriptor, folder, behind, rest))
