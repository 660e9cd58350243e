"""Open files of the service. Imports nothing, so `diptych doctor` can use it without the service's packages."""

DEFAULT_CONNECTIONS = 4096  # default of DIPTYCH_MAX_CONNECTIONS
OTHER_FILES = 256  # file descriptors beside connections: store, engines, log
