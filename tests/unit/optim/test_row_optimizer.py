"""Row tables and the row-wise optimizer."""

import torch

from training.model.row_table import RowTable
from training.optim.row_optimizer import DECAY, rounding_noise, stochastic_round, update_rows_


def train_rows(table: RowTable, rows: list[int], gradient: torch.Tensor, rate: float = 0.1) -> None:
    leaf = table.take(torch.tensor(rows))
    (leaf * gradient).sum().backward()  # type: ignore[no-untyped-call]
    update_rows_(table, *table.pop_gradients(), rate)


def test_only_the_rows_of_the_batch_change() -> None:
    """If it fails, labels without data drift or decay, which the row-wise optimizer exists to prevent."""
    before = torch.randn(50, 8)
    table = RowTable(before.clone())
    train_rows(table, [3, 7], torch.randn(2, 8))
    untouched = [row for row in range(50) if row not in (3, 7)]
    assert torch.equal(table.weight[untouched], before[untouched])
    assert not torch.equal(table.weight[[3, 7]], before[[3, 7]])
    assert table.steps.nonzero().flatten().tolist() == [3, 7]


def test_an_update_follows_the_equation() -> None:
    """If it fails, the update is not RMSprop with one second moment per row and bias correction."""
    table = RowTable(torch.zeros(1, 4))
    moment, expected = 0.0, torch.zeros(4)
    for count, scale in enumerate((1.0, 3.0, 0.5), start=1):
        gradient = scale * torch.tensor([1.0, -2.0, 0.5, 0.0])
        train_rows(table, [0], gradient.unsqueeze(0))
        moment = DECAY * moment + (1 - DECAY) * gradient.square().mean().item()
        expected = expected - 0.1 * gradient / (moment / (1 - DECAY**count)) ** 0.5
    assert torch.allclose(table.weight[0], expected, atol=1e-5)


def test_rows_taken_twice_are_updated_once_with_the_summed_gradient() -> None:
    """If it fails, a token in queries and labels of one batch loses one of its two gradients."""
    once, twice = RowTable(torch.zeros(4, 3)), RowTable(torch.zeros(4, 3))
    train_rows(once, [1, 2], torch.tensor([[2.0, 2, 2], [1, 1, 1]]))
    first, second = twice.take(torch.tensor([1])), twice.take(torch.tensor([2, 1]))
    (first.sum() + second.sum()).backward()  # type: ignore[no-untyped-call]
    update_rows_(twice, *twice.pop_gradients(), 0.1)
    assert torch.allclose(once.weight, twice.weight)


def test_rows_taken_in_evaluation_mode_have_no_gradient() -> None:
    """If it fails, validation leaks memory or changes weights at the next step."""
    table = RowTable(torch.randn(4, 3)).eval()
    before = table.weight.clone()
    assert not table.take(torch.tensor([0, 1])).requires_grad
    update_rows_(table, *table.pop_gradients(), 0.1)
    assert torch.equal(table.weight, before)


def test_stochastic_rounding_is_unbiased_and_exact_for_bfloat16_values() -> None:
    """If it fails, ψ in bfloat16 drifts, or changes without an update."""
    torch.manual_seed(0)
    exact = torch.tensor([0.0, 1.0, -2.5, 3e-20, -1e30]).bfloat16()
    assert torch.equal(stochastic_round(exact.float(), rounding_noise(exact.float())), exact)
    between = torch.tensor([1.001, -1.001, 0.3337, -7.77e-9]).repeat(200_000, 1)
    rounded = stochastic_round(between, rounding_noise(between))
    assert all(len(rounded[:, column].unique()) == 2 for column in range(4)), "both neighbours, and no other value"
    mean = rounded.double().mean(dim=0)
    assert torch.allclose(mean, between[0].double(), rtol=1e-4, atol=0)


def test_a_bfloat16_table_follows_a_float32_one() -> None:
    """If it fails, updates below the precision of bfloat16 are lost, as with rounding to nearest."""
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


def test_the_memory_per_row_is_as_documented() -> None:
    """If it fails, ψ of millions of labels needs more memory than documented."""
    for dtype, each in ((torch.float32, 4), (torch.bfloat16, 2)):
        table = RowTable(torch.zeros(10, 32, dtype=dtype))
        train_rows(table, [1, 2], torch.ones(2, 32))
        assert sum(tensor.nbytes for tensor in table.state_dict().values()) == 10 * (each * 32 + 8)
