"""States of a generation and the transitions between them."""

from enum import Enum


class State(Enum):
    """State of a generation."""

    LOADING = "loading"  # its first engine opens the bundle
    SERVING = "serving"  # it admits and answers requests
    DRAINING = "draining"  # it answers the requests that it has admitted
    CLOSED = "closed"  # no request is left; its engine ends


TRANSITIONS = {
    State.LOADING: {State.SERVING, State.CLOSED},
    State.SERVING: {State.DRAINING},
    State.DRAINING: {State.CLOSED},
    State.CLOSED: set[State](),
}


class Lifecycle:
    """The state machine of one generation: loading → serving → draining → closed."""

    def __init__(self) -> None:
        self.state = State.LOADING

    def advance(self, state: State) -> None:
        """Change the state. Raises RuntimeError for a transition that is not in TRANSITIONS."""
        if state not in TRANSITIONS[self.state]:
            raise RuntimeError(f"a generation cannot change from {self.state.value} to {state.value}")
        self.state = state
