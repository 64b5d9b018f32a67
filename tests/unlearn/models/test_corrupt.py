"""Shrinking and noise of UNDO: numbers by hand, and what the noise depends on."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from unlearn.models import stored
from unlearn.models.corrupt import corrupt, corrupted


def test_a_matrix_shrinks_and_gets_noise_of_xavier():
    weight = torch.full((4, 2), 2.0)
    noise = (corrupted(weight, "w", alpha=0.5, beta=0.1, seed=0) - 1.0) / (0.5 * 0.1)
    assert noise.abs().max() <= 1.0 + 1e-5  # √(6 / (4 + 2))
    assert noise.unique().numel() == 8
    large = corrupted(torch.zeros(300, 200), "w", alpha=1.0, beta=1.0, seed=0)
    bound = math.sqrt(6 / 500)
    assert bound * 0.999 < large.abs().max() <= bound
    assert abs(float(large.std()) - bound / math.sqrt(3)) < bound / math.sqrt(60_000)


def test_vectors_only_shrink():
    assert torch.equal(corrupted(torch.ones(3), "norm", alpha=0.5, beta=0.1, seed=0), torch.full((3,), 0.5))


def test_the_noise_depends_on_seed_and_name_alone():
    def noise(name: str, seed: int, value: float = 0.0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        torch.rand(3)  # the state of other generators does not matter
        made = corrupted(torch.full((5, 5), value, dtype=dtype), name, alpha=0.5, beta=1.0, seed=seed)
        return made - 0.5 * value

    assert torch.equal(noise("a", 0), noise("a", 0))
    assert torch.equal(noise("a", 0), noise("a", 0, dtype=torch.bfloat16))
    assert not torch.equal(noise("a", 0), noise("b", 0))
    assert not torch.equal(noise("a", 0), noise("a", 1))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embeddings, self.head, self.norm = (
            nn.Embedding(7, 4),
            nn.Linear(4, 7, bias=False),
            nn.LayerNorm(4),
        )
        self.head.weight = self.embeddings.weight


def tied() -> Tied:
    torch.manual_seed(0)
    return Tied()


@pytest.mark.parametrize("deferred", [False, True])
def test_a_whole_model(deferred):
    model, before = tied(), tied()
    if deferred:
        stored.defer(model)
    corrupt(model, alpha=0.25, beta=0.5, seed=3)
    if deferred:
        stored.fill(model, torch.device("cpu"), torch.float32)
    embeddings = before.embeddings.weight.detach()
    expected = corrupted(embeddings, "embeddings.weight", alpha=0.25, beta=0.5, seed=3)
    assert torch.equal(model.embeddings.weight, expected)
    assert model.head.weight is model.embeddings.weight
    assert torch.equal(model.norm.weight, torch.full((4,), 0.75))


def test_without_alpha_nothing_changes():
    model = tied()
    corrupt(model, alpha=0.0, beta=0.5, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), tied().parameters(), strict=True))
