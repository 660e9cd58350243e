"""Errors of collectives name their cause."""

import pytest
import torch

from retrieval.errors import TrainingError
from retrieval.system import stopping
from training.optim.collective_errors import collective_errors


@pytest.mark.parametrize(
    ("said", "named"),
    [
        # as gloo, NCCL and PyTorch's store say them
        (
            "[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:5000",
            "another process .* has ended",
        ),
        ("[../gloo/transport/tcp/pair.cc:553] Read error: Connection reset by peer", "another process .* has ended"),
        ("Broken pipe", "another process .* has ended"),
        ("NCCL Error 6: remote process exited or there was a network error", "another process .* has ended"),
        ("[..] Timed out waiting 21600000ms for recv operation to complete", "another process .* has ended"),
        ("CUDA error: out of memory", "memory ran out while"),
        ("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory", "memory ran out while"),
        ("Tensors must have the same shape; op.preamble.length <= op.nbytes. 16 vs 8", "cannot exchange data"),
        ("Invalid scalar type", "cannot exchange data"),
        ("NCCL Error 1: unhandled cuda error", "cannot exchange data"),
    ],
)
def test_the_error_names_the_cause_and_has_the_original_message(said: str, named: str) -> None:
    """If it fails, a user looks for a dead process although memory or tensor shapes are the cause."""
    with pytest.raises(TrainingError, match=named) as raised, collective_errors():
        raise RuntimeError(said)
    assert said.rstrip(".") in str(raised.value)


def test_memory_of_the_gpu_keeps_its_own_error() -> None:
    """If it fails, the advice for a full GPU is lost in a collective."""
    with pytest.raises(torch.OutOfMemoryError), collective_errors():
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_connection_that_is_lost_while_stopping_is_an_orderly_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, a stopped run of several processes ends as if one of them had crashed."""
    monkeypatch.setattr(stopping._State, "requested", 15)
    with pytest.raises(stopping.StopRequested) as raised, collective_errors():
        raise RuntimeError("Connection closed by peer")
    assert raised.value.code == 143
