"""Tables that are learned row by row."""

import torch

from training.model.row_table import RowTable
from training.optim.row_optimizer import DECAY, stochastic_round, update_rows_


def train_rows(table: RowTable, rows: list[int], gradient: torch.Tensor, rate: float = 0.1) -> None:
    leaf = table.take(torch.tensor(rows))
    (leaf * gradient).sum().backward()  # type: ignore[no-untyped-call]
    update_rows_(table, *table.pop_gradients(), rate)


def test_only_the_rows_of_the_batch_move() -> None:
    """If this failed, labels without data would drift or decay, which the row-wise optimiser is there to stop."""
    before = torch.randn(50, 8)
    table = RowTable(before.clone())
    train_rows(table, [3, 7], torch.randn(2, 8))
    untouched = [row for row in range(50) if row not in (3, 7)]
    assert torch.equal(table.weight[untouched], before[untouched])
    assert not torch.equal(table.weight[[3, 7]], before[[3, 7]])
    assert table.steps.nonzero().flatten().tolist() == [3, 7]


def test_a_step_is_the_written_rule() -> None:
    """If this failed, the update would not be RMSprop with one second moment per row and bias correction."""
    table = RowTable(torch.zeros(1, 4))
    moment, expected = 0.0, torch.zeros(4)
    for count, scale in enumerate((1.0, 3.0, 0.5), start=1):
        gradient = scale * torch.tensor([1.0, -2.0, 0.5, 0.0])
        train_rows(table, [0], gradient.unsqueeze(0))
        moment = DECAY * moment + (1 - DECAY) * gradient.square().mean().item()
        expected = expected - 0.1 * gradient / (moment / (1 - DECAY**count)) ** 0.5
    assert torch.allclose(table.weight[0], expected, atol=1e-5)


def test_rows_taken_twice_in_a_step_move_once_by_the_summed_gradient() -> None:
    """If this failed, a token that stands in queries and labels of one batch would lose one of its two gradients."""
    once, twice = RowTable(torch.zeros(4, 3)), RowTable(torch.zeros(4, 3))
    train_rows(once, [1, 2], torch.tensor([[2.0, 2, 2], [1, 1, 1]]))
    first, second = twice.take(torch.tensor([1])), twice.take(torch.tensor([2, 1]))
    (first.sum() + second.sum()).backward()  # type: ignore[no-untyped-call]
    update_rows_(twice, *twice.pop_gradients(), 0.1)
    assert torch.allclose(once.weight, twice.weight)


def test_evaluation_takes_leave_nothing_behind() -> None:
    """If this failed, validating would leak memory or move weights at the next step."""
    table = RowTable(torch.randn(4, 3)).eval()
    before = table.weight.clone()
    assert not table.take(torch.tensor([0, 1])).requires_grad
    update_rows_(table, *table.pop_gradients(), 0.1)
    assert torch.equal(table.weight, before)


def test_rounding_at_random_is_right_on_average_and_leaves_what_fits() -> None:
    """If this failed, ψ in bfloat16 would drift, or change without a step."""
    torch.manual_seed(0)
    exact = torch.tensor([0.0, 1.0, -2.5, 3e-20, -1e30]).bfloat16()
    assert torch.equal(stochastic_round(exact.float()), exact)
    between = torch.tensor([1.001, -1.001, 0.3337, -7.77e-9]).repeat(200_000, 1)
    rounded = stochastic_round(between)
    assert all(len(rounded[:, column].unique()) == 2 for column in range(4)), "its two neighbours and nothing else"
    mean = rounded.double().mean(dim=0)
    assert torch.allclose(mean, between[0].double(), rtol=1e-4, atol=0)


def test_a_bfloat16_table_follows_a_float32_one() -> None:
    """If this failed, steps smaller than a bfloat16 can tell would be lost, as rounding to the nearest loses them."""
    torch.manual_seed(0)
    start = torch.randn(400, 16).bfloat16()
    whole, half = RowTable(start.float()), RowTable(start.clone())
    nearest, rows, rate, steps = start.clone(), list(range(400)), 2e-4, 300
    for _ in range(steps):
        gradient = torch.randn(400, 16) + 1.0
        before = whole.weight.clone()
        train_rows(whole, rows, gradient, rate)
        train_rows(half, rows, gradient, rate)
        nearest = (nearest.float() + whole.weight - before).bfloat16()
    went = (whole.weight - start.float()).mean()
    assert abs((half.weight.float() - start.float()).mean() / went - 1) < 0.02
    assert abs((nearest.float() - start.float()).mean() / went - 1) > 0.2, "the test would pass without random rounding"


def test_a_row_takes_as_many_bytes_as_it_says() -> None:
    """If this failed, ψ of millions of labels would need more memory than is planned for."""
    for dtype, each in ((torch.float32, 4), (torch.bfloat16, 2)):
        table = RowTable(torch.zeros(10, 32, dtype=dtype))
        train_rows(table, [1, 2], torch.ones(2, 32))
        assert sum(tensor.nbytes for tensor in table.state_dict().values()) == 10 * (each * 32 + 8)
