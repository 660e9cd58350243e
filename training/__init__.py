"""Train the unified model (UniDEC, Algorithm 1): from a dataset to a checkpoint. Needs torch."""

import os

# OpenMP's threads spin while they wait for each other. Where anything else runs on the same cores, they spin for a
# thread that is not running: five times slower on two shared cores. torch reads this once, when it is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
