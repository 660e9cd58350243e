"""Limits that other packages need as well. This module has no imports: the doctor uses it without the extra `serve`."""

MAX_CONNECTIONS = 4096  # open connections by default
OTHER_FILES = 256  # file descriptors beside connections: store, engines, log
