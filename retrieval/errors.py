"""All errors that a caller can catch. Each message names the thing, the value and the fix."""


class DiptychError(Exception):
    """Base class of all errors. The command line prints the message and exits with code 1."""


class BadInput(DiptychError):
    """An invalid argument, such as an empty query, k below 1, or a vector of the wrong dimension."""


class DatasetError(DiptychError):
    """An invalid source or prepared dataset."""


class TableError(BadInput, DatasetError):
    """A table cannot be read. `prepare` (DatasetError) and `predict` (BadInput) read the same tables."""


class InternalError(DiptychError):
    """A bug in Diptych, such as row counts that do not add up."""


class RecipeError(DiptychError):
    """A recipe with an unknown key, or a value outside its range."""


class TrainingError(DiptychError):
    """A training run that cannot continue, such as one whose loss is NaN."""


class CheckpointError(DiptychError):
    """A missing or damaged checkpoint, or one of another version."""


class BundleError(DiptychError):
    """A missing or damaged bundle or store, or one of a version that this release cannot read."""


class Unreachable(BundleError):
    """No response from the URL of a store, because of the network, the server or the credentials. Retry later."""


class IndexUnavailable(BundleError):
    """No candidates from the server of the index, because it is away or too slow. Retry later."""


class GateError(DiptychError):
    """A bundle that fails a check of its export."""


def one_line(error: object) -> str:
    """Return a library's error text without line breaks and the full stop, to use it within a message."""
    return " ".join(str(error).split()).rstrip(".")
