"""Every error a caller can catch: each message is a sentence or two for a person, naming the thing and the way out."""


class DiptychError(Exception):
    """The root of all errors of this project; the command line prints the message and ends with code 1."""


class BadInput(DiptychError):
    """A value that the caller gave cannot be used: an empty query, k below 1, a vector of the wrong width."""


class DatasetError(DiptychError):
    """A source or a prepared dataset does not hold what it should."""


class TableError(BadInput, DatasetError):
    """A table of rows cannot be read; `prepare` and `predict` read the same tables, so it is the error of both."""


class InternalError(DiptychError):
    """An error in diptych itself, such as row counts that do not add up."""


class RecipeError(DiptychError):
    """A recipe has an unknown key, or a value outside its range."""


class TrainingError(DiptychError):
    """A run cannot go on: its loss is no number any more."""


class CheckpointError(DiptychError):
    """A checkpoint is missing, damaged or of another version."""


class BundleError(DiptychError):
    """A bundle or a store is missing, damaged or of a version this release cannot read."""


class Unreachable(BundleError):
    """Nothing answers at the URL of a store: the network, the server or the credentials; later it may."""


class GateError(DiptychError):
    """A bundle did not prove what it must before it gets its name."""


def in_a_line(said: object) -> str:
    """What a library says of an error, without its line breaks and its full stop: to stand inside a sentence."""
    return " ".join(str(said).split()).rstrip(".")
