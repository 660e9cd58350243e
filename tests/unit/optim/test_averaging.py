"""The moving average of the weights: its value, its use in validation, and its state."""

import pytest
import torch
from torch import nn

from training.model.row_table import RowTable
from training.optim.averaging import AveragedWeights

DECAY = 0.75


class TinyModel(nn.Module):
    """A dense weight, a row table with optimizer state, and a buffer of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Parameter(torch.zeros(2))
        self.table = RowTable(torch.zeros(3, 2))
        self.register_buffer("places", torch.arange(3))


def after(model: TinyModel, epoch: int) -> None:
    """Set the weights to those after an epoch."""
    with torch.no_grad():
        model.dense.fill_(float(epoch**2))
        model.table.weight.fill_(float(-epoch))
        model.table.second_moment.fill_(float(epoch))
        model.table.steps.fill_(epoch)


def averaged(epochs: int, decay: float = DECAY) -> tuple[TinyModel, AveragedWeights]:
    model = TinyModel()
    average = AveragedWeights(model, decay)  # type: ignore[arg-type]  # any module has weights
    for epoch in range(1, epochs + 1):
        after(model, epoch)
        average.update(epoch)
    return model, average


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_the_average_weights_epochs_with_powers_of_the_decay(epochs: int) -> None:
    """Early epochs would count too much, as the random start does without the correction, or too little."""
    model, average = averaged(epochs)
    weight_by_epoch = torch.tensor([DECAY ** (epochs - epoch) for epoch in range(1, epochs + 1)])
    weight_by_epoch /= weight_by_epoch.sum()
    squares = torch.arange(1, epochs + 1) ** 2
    with average.applied():
        torch.testing.assert_close(model.dense[0], (weight_by_epoch * squares).sum())
        torch.testing.assert_close(model.table.weight[0, 0], -(weight_by_epoch * squares.sqrt()).sum())
        assert model.table.steps.tolist() == [epochs] * 3, "the optimizer's state was averaged"
        assert model.table.second_moment.tolist() == [float(epochs)] * 3, "the optimizer's state was averaged"


def test_weights_and_average_are_unchanged_after_use() -> None:
    """Training would continue from the average, or each validation would change it."""
    model, average = averaged(3)
    before = {name: tensor.clone() for name, tensor in average.state_dict().items()}

    def interrupted() -> None:
        with average.applied():
            assert model.dense.tolist() != [9.0, 9.0]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert model.dense.tolist() == [9.0, 9.0]
    assert all(torch.equal(before[name], tensor) for name, tensor in average.state_dict().items())


def test_an_epoch_is_averaged_once() -> None:
    """A run that was stopped in a validation would count the epoch twice when it is resumed."""
    model, average = averaged(2)
    once = average.state_dict()["dense"].clone()
    after(model, 7)
    average.update(2)
    assert torch.equal(average.state_dict()["dense"], once)


def test_a_restored_average_continues_exactly() -> None:
    """A resumed run would have other weights than an uninterrupted one."""
    _, whole = averaged(4)
    model, part = averaged(2)
    restored = AveragedWeights(model, DECAY)  # type: ignore[arg-type]  # any module has weights
    restored.load_state_dict({name: tensor.clone() for name, tensor in part.state_dict().items()})
    for epoch in (3, 4):
        after(model, epoch)
        restored.update(epoch)
    expected = whole.state_dict()
    assert restored.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in restored.state_dict().items())


def test_a_state_of_other_weights_is_refused() -> None:
    """Damaged averages would be loaded silently, and validation would measure them."""
    model, average = averaged(1)
    state = average.state_dict()
    for damaged in ({**state, "dense": torch.zeros(5)}, {n: t for n, t in state.items() if n != "dense"}):
        with pytest.raises(ValueError, match="another model"):
            AveragedWeights(model, DECAY).load_state_dict(damaged)  # type: ignore[arg-type]


def test_without_decay_the_weights_themselves_are_used() -> None:
    """`optimizer.averaging: 0` would still average, or store a copy."""
    model, average = averaged(3, decay=0.0)
    with average.applied():
        assert model.dense.tolist() == [9.0, 9.0]
    assert average.state_dict() == {}
