"""States of a generation."""

import pytest

from service.bundles.lifecycle import TRANSITIONS, Lifecycle, State

PATHS = {
    State.LOADING: [],
    State.SERVING: [State.SERVING],
    State.DRAINING: [State.SERVING, State.DRAINING],
    State.CLOSED: [State.SERVING, State.DRAINING, State.CLOSED],
}


def in_state(state: State) -> Lifecycle:
    lifecycle = Lifecycle()
    for step in PATHS[state]:
        lifecycle.advance(step)
    return lifecycle


def test_a_generation_goes_through_all_states_in_order() -> None:
    """A bundle could not be opened, served or closed."""
    assert [in_state(state).state for state in State] == list(State)


def test_a_generation_that_does_not_open_is_closed() -> None:
    """A bundle that cannot be opened would count as loading forever."""
    lifecycle = Lifecycle()
    lifecycle.advance(State.CLOSED)
    assert lifecycle.state is State.CLOSED


@pytest.mark.parametrize("state", State)
def test_every_other_transition_is_an_error(state: State) -> None:
    """A closed generation could serve again without an engine, or a serving one could end without draining."""
    for target in set(State) - TRANSITIONS[state]:
        lifecycle = in_state(state)
        with pytest.raises(RuntimeError, match=f"cannot change from {state.value} to {target.value}"):
            lifecycle.advance(target)
        assert lifecycle.state is state
