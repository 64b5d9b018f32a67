"""The fused head against its product and a log-softmax by autograd in float64, and its memory."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.tolerance import PASS, assert_close
from unlearn.data.batching import collate
from unlearn.data.tokenization import TokenSequence
from unlearn.passes import head_logp as module
from unlearn.passes import token_logp as blocks
from unlearn.passes.forward import ForwardRequest, answer_logits, read
from unlearn.passes.head import head_is_plain
from unlearn.passes.head_logp import head_logp
from unlearn.passes.token_logp import token_logp

ROWS, WIDTH, VOCABULARY = 13, 16, 29


def operands(bias: bool) -> dict[str, Tensor]:
    drawn = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"hidden": (ROWS, WIDTH), "weight": (VOCABULARY, WIDTH)}
    if bias:
        shapes["bias"] = (VOCABULARY,)
    return {name: torch.randn(shape, generator=drawn) for name, shape in shapes.items()}


LABELS = torch.randint(0, VOCABULARY, (ROWS,), generator=torch.Generator().manual_seed(1))
FACTORS = torch.randn(ROWS, generator=torch.Generator().manual_seed(2))


def exact(given: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    wide = {name: each.double().requires_grad_() for name, each in given.items()}
    logits = nn.functional.linear(wide["hidden"], wide["weight"], wide.get("bias"))
    logp = logits.log_softmax(-1).gather(-1, LABELS[:, None])[:, 0]
    (logp * FACTORS).sum().backward()
    return logp.detach(), {name: each.grad for name, each in wide.items() if each.grad is not None}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("piece", [1, 4 * VOCABULARY, 1 << 26])
def test_values_and_gradients(
    piece: int, bias: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PIECE", piece)
    monkeypatch.setattr(blocks, "_CPU_BLOCK", 3 * VOCABULARY)  # the last block of a piece is shorter
    given = {name: each.to(dtype) for name, each in operands(bias).items()}
    logp, gradients = exact(given)
    leaves = {name: each.clone().requires_grad_() for name, each in given.items()}
    found = head_logp(leaves["hidden"], leaves["weight"], leaves.get("bias"), LABELS)
    assert found.dtype == torch.float32
    assert_close(found.detach(), logp, terms=WIDTH, dtype=dtype)
    (found * FACTORS).sum().backward()
    assert_close({n: each.grad for n, each in leaves.items()}, gradients, terms=ROWS * WIDTH, dtype=dtype)


def test_a_second_backward_gives_the_same() -> None:
    """The first one overwrites what the forward has kept."""
    leaves = {name: each.requires_grad_() for name, each in operands(True).items()}
    total = (head_logp(leaves["hidden"], leaves["weight"], leaves["bias"], LABELS) * FACTORS).sum()
    first, second = (torch.autograd.grad(total, list(leaves.values()), retain_graph=True) for _ in range(2))
    for one, two in zip(first, second, strict=True):
        assert_close(two, one, terms=ROWS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_positions_give_gradients_of_zero(dtype: torch.dtype) -> None:
    """DeepSpeed waits for the gradient of every parameter."""
    leaves = {name: each.to(dtype).requires_grad_() for name, each in operands(True).items()}
    found = head_logp(leaves["hidden"][:0], leaves["weight"], leaves["bias"], LABELS[:0])
    found.sum().backward()
    assert found.shape == (0,)
    for leaf in leaves.values():
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))  # type: ignore[arg-type]


def test_the_number_of_pieces_does_not_matter_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, gradients = 512, []
    drawn = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 16, generator=drawn).bfloat16() for n in (rows, VOCABULARY))
    labels = torch.randint(0, VOCABULARY, (rows,), generator=drawn)
    for piece in (1 << 26, 4 * VOCABULARY):
        monkeypatch.setattr(module, "_PIECE", piece)
        leaf = weight.clone().requires_grad_()
        head_logp(hidden, leaf, None, labels).sum().backward()
        gradients.append(leaf.grad)
    # One rounding of the sum, and that of each share, whose errors average out: not one for each piece.
    assert_close(gradients[1], gradients[0], dtype=torch.bfloat16)


@pytest.mark.parametrize("learns", ["hidden", "weight", "bias"])
def test_frozen_parts_get_no_gradient(learns: str) -> None:
    given = operands(True)
    _, gradients = exact(given)
    given[learns].requires_grad_()
    found = head_logp(given["hidden"], given["weight"], given["bias"], LABELS)
    (found * FACTORS).sum().backward()
    assert [name for name, each in given.items() if each.grad is not None] == [learns]
    assert_close(given[learns].grad, gradients[learns].float(), terms=ROWS * WIDTH)


def sequences() -> list[TokenSequence]:
    drawn = torch.Generator().manual_seed(3)
    rows = [torch.randint(1, 97, (length,), generator=drawn).int().numpy() for length in (9, 12, 7)]
    return [TokenSequence(row, 4, True) for row in rows]


class Largest(TorchDispatchMode):
    """Records the most elements of any tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(each, Tensor):
                self.elements = max(self.elements, each.numel())
        return out


@pytest.mark.parametrize("plain", [True, False])
def test_read_takes_it_where_nothing_follows_the_head(
    plain: bool, tiny_model: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = tiny_model("llama" if plain else "gemma2"), collate(sequences())
    assert head_is_plain(model) == plain
    wanted = token_logp(answer_logits(model, batch), batch.labels)
    wanted.sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    monkeypatch.setattr(module, "_PIECE", 4 * 97)
    monkeypatch.setattr(blocks, "_CPU_BLOCK", 4 * 97)
    found = read(model, batch, [ForwardRequest(batch.index, batch.labels, logp=True)])[0]["logp"]
    assert_close(found.detach(), wanted.detach(), terms=PASS)
    found.sum().backward()
    assert_close({n: p.grad for n, p in model.named_parameters()}, gradients, terms=PASS)


def test_logits_of_a_large_pass_never_exist_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, width, vocabulary = 64, 8, 512
    monkeypatch.setattr(module, "_PIECE", 4 * vocabulary)
    hidden, weight = (torch.randn(n, width, requires_grad=True) for n in (rows, vocabulary))
    with Largest() as largest:
        head_logp(hidden, weight, None, torch.zeros(rows, dtype=torch.long)).sum().backward()
    assert largest.elements == vocabulary * width  # the weight's gradient
    assert rows * vocabulary > largest.elements
