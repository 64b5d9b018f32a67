"""A sparse autoencoder, and functions on its activations: pure functions on tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from unlearn.errors import UserError
from unlearn.paths import user_path

# Added to a denominator that may be 0; the value in the authors' code.
_TINY = 1e-21
_TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec")


@dataclass(frozen=True)
class SAE:
    """f(x) = z·[z > threshold] with z = x·`encode` + `encode_bias`, and its decoder: fp32.

    Shapes: `encode` [D, F], `encode_bias` [F], `decode` [F, D], `threshold` [F] (0: a plain ReLU). There is
    no decoder bias: edits are differences of reconstructions, in which it cancels.
    """

    encode: Tensor
    encode_bias: Tensor
    decode: Tensor
    threshold: Tensor

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return the activations [..., F] of states [..., D]."""
        before = hidden.float() @ self.encode + self.encode_bias
        return before.relu() * (before > self.threshold)

    def part(self, features: Tensor) -> SAE:
        """Return the autoencoder of some features, in the order of `features` [n]."""
        return SAE(
            self.encode[:, features], self.encode_bias[features], self.decode[features],
            self.threshold[features],
        )  # fmt: skip

    def to(self, device: torch.device) -> SAE:
        return replace(self, **{name: t.to(device) for name, t in vars(self).items()})


def sae_problem(file: str | Path) -> str | None:
    """Return why a file holds no autoencoder, from its list of tensors; None where it may."""
    file = user_path(file)
    try:
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as stored:
                names = list(stored.files)
        else:
            with safe_open(file, "pt") as opened:
                names = list(opened.keys())
    except (OSError, ValueError, SafetensorError) as error:
        return f"cannot be read: {error}"
    if lacking := [name for name in _TENSORS if name not in names]:
        return f"has no {', '.join(lacking)} (it holds {', '.join(sorted(names)) or 'nothing'})"
    return None


def read_sae(file: str | Path, hidden_size: int, *, centred: bool = False) -> SAE:
    """Read a `.safetensors` or `.npz` file with W_enc, b_enc, W_dec, b_dec and perhaps threshold.

    `centred`: the encoder was trained on x − b_dec.

    Raises:
        UserError: the file cannot be read, lacks a tensor, or has the shapes of another model.
    """
    file = user_path(file)
    label = f"method.intervention.sae={file}"
    if problem := sae_problem(file):
        raise UserError(f"{label} {problem}")
    try:
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as stored:
                tensors = {name: torch.from_numpy(np.asarray(stored[name])) for name in stored.files}
        else:
            tensors = load_file(file)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{label} cannot be read: {error}") from None
    width = tensors["b_enc"].numel()
    shapes = {"W_enc": (hidden_size, width), "W_dec": (width, hidden_size), "b_dec": (hidden_size,),
              "b_enc": (width,), "threshold": (width,)}  # fmt: skip
    for name, shape in shapes.items():
        if name in tensors and tuple(tensors[name].shape) != shape:
            raise UserError(
                f"{label}: {name} has shape {tuple(tensors[name].shape)}, not {shape}: is it of a model "
                f"of width {hidden_size}?"
            )
    numbers = {name: tensors[name].float().contiguous() for name in tensors if name in shapes}
    bias = numbers["b_enc"]
    if centred:
        bias = bias - numbers["b_dec"] @ numbers["W_enc"]
    threshold = numbers.get("threshold", torch.zeros(width))
    return SAE(numbers["W_enc"], bias, numbers["W_dec"], threshold)


def scores(total: Tensor, tokens: int) -> Tensor:
    """Return the squared mean activation [F] of each feature, from the sum over tokens."""
    return (total / tokens).square()


def select(
    forget: Tensor, retain: Tensor, *, count: int, forget_percentile: float, ratio_percentile: float
) -> Tensor:
    """Return the indices of at most `count` features to suppress, the highest forget score first.

    Candidates have a forget score [F] at or above its percentile over all features, and a ratio of forget to
    retain score at or above the percentile of ratios. A feature that never fires on forget tokens is none.
    """
    ratio = forget / (retain + _TINY)
    good = (forget > 0) & (forget >= torch.quantile(forget, forget_percentile / 100))
    good &= ratio >= torch.quantile(ratio, ratio_percentile / 100)
    order = torch.where(good, forget, -1.0).argsort(descending=True, stable=True)
    return order[: min(count, int(good.sum()))]


def share(fired: Tensor, real: Tensor) -> Tensor:
    """Return ρ [B], fp64: the share of the real tokens [B, T] on which a feature fired; 0 without tokens."""
    return (fired & real).sum(-1).double() / real.sum(-1).clamp(min=1).double()


def share_so_far(
    fired: Tensor, real: Tensor, prompt_end: Tensor, before: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return ρ [B, T] over the tokens known when each token is processed, and the counts to continue from.

    The whole prompt is known: up to position `prompt_end` [B], ρ is that of the prompt, then of all tokens so
    far. `before` are the counts (fired, real), each [B], of the tokens that earlier calls processed.
    """
    hits, tokens = (fired & real).cumsum(-1), real.cumsum(-1)
    if before is not None:
        hits, tokens = hits + before[0][:, None], tokens + before[1][:, None]
    last = fired.shape[1] - 1
    at = torch.arange(last + 1, device=fired.device).maximum(prompt_end.clamp(max=last)[:, None])
    rho = hits.gather(1, at).double() / tokens.gather(1, at).clamp(min=1).double()
    return rho, (hits[:, -1], tokens[:, -1])


def suppress(hidden: Tensor, active: Tensor, decode: Tensor, strength: float) -> Tensor:
    """Return states [..., D] with n features set to −`strength`, from their activations [..., n].

    The part that the SAE does not reconstruct stays: this adds the sum over the features of (−c − f)·decode.
    """
    return (hidden.float() + (-strength - active) @ decode).to(hidden.dtype)
