"""A guardrail of sparse-autoencoder features, fitted once, applied at inference (DSG, arXiv 2504.08192)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from unlearn.config import Section
from unlearn.data.batching import Batch
from unlearn.errors import ConfigError, UserError
from unlearn.interventions._base import (
    Intervention,
    Pass,
    blocks,
    checked_layer,
    edited,
    hidden_of,
    host,
)
from unlearn.interventions._sae import (
    SAE,
    read_sae,
    sae_problem,
    scores,
    select,
    share,
    share_so_far,
    suppress,
)
from unlearn.passes.head import head_on
from unlearn.passes.prompt_layout import laid_out, right_padded

# Tokens whose activations of all features are in memory at once.
_TOKENS = 2048


class DsgOptions(Section):
    """`method.intervention` with `name: dsg`."""

    sae: Path = Field(description=".safetensors or .npz with W_enc, b_enc, W_dec, b_dec [and threshold]")
    layer: NonNegativeInt = Field(3, description="block, from 0, whose output the autoencoder was trained on")
    centred: bool = Field(False, description="the encoder was trained on the state less b_dec")
    features: PositiveInt = Field(20, description="how many features to suppress")
    strength: PositiveFloat = Field(500.0, description="suppressed features are set to minus this")
    forget_percentile: float = Field(5.0, ge=0, le=100, description="of the forget score: lowest to keep")
    ratio_percentile: float = Field(95.0, ge=0, le=100, description="of forget ÷ retain: lowest to keep")
    threshold_percentile: float = Field(
        95.0, ge=0, le=100, description="of the retain sequences' share of firing tokens: what is let through"
    )

    @field_validator("sae")
    @classmethod
    def _readable(cls, file: Path) -> Path:
        if file.suffix not in (".safetensors", ".npz"):
            raise ValueError("give a .safetensors or .npz file")
        return file


class Dsg(Intervention):
    """Suppress the features of the forget set in sequences on which they fire often.

    Edits the output of one block: where the share of tokens with a firing feature is above the fitted
    threshold, all selected features of each token with a firing feature are set to −strength. The share is
    over the tokens known when a token is processed: the prompt for its own tokens, all tokens so far for
    those after it. So a likelihood pass and generation compute the same; the authors' code takes the share of
    whole sequences. The beginning-of-sequence token (`bos_token_id` of the model's configuration) and padding
    do not count.

    After fitting, only the selected features of the autoencoder are kept, always in fp32.
    """

    files = ("sae",)
    sets = ("forget", "retain")
    Options = DsgOptions
    features: Tensor
    encode: Tensor
    encode_bias: Tensor
    decode: Tensor
    jump: Tensor
    threshold: Tensor

    @classmethod
    def file_problem(cls, option: str, file: str) -> str | None:
        return super().file_problem(option, file) or sae_problem(file)

    def __init__(self, options: DsgOptions, *, hidden_size: int, layers: int, seed: int = 0) -> None:
        """
        Raises:
            ConfigError: the model does not have that layer.
        """
        super().__init__(options)
        if problem := checked_layer(options.layer, layers, "layer"):
            raise ConfigError([problem])
        self.dsg, self.hidden_size = options, hidden_size
        self.register_buffer("features", torch.zeros(0, dtype=torch.long))
        self.register_buffer("encode", torch.zeros(hidden_size, 0))
        self.register_buffer("encode_bias", torch.zeros(0))
        self.register_buffer("decode", torch.zeros(0, hidden_size))
        self.register_buffer("jump", torch.zeros(0))
        self.register_buffer("threshold", torch.zeros((), dtype=torch.float64))
        self._bos: int | None = None
        self._counts: tuple[Tensor, Tensor] | None = None

    def fit(self, model: nn.Module, forget: Iterable[Batch], retain: Iterable[Batch]) -> None:
        """Choose the features and the threshold, on the model without this intervention.

        Raises:
            UserError: the autoencoder cannot be read, or no feature distinguishes forget from retain.
        """
        options = self.dsg
        sae = read_sae(options.sae, self.hidden_size, centred=options.centred)
        sae = sae.to(next(model.parameters()).device)
        selected = select(
            self._scores(model, sae, forget), self._scores(model, sae, retain), count=options.features,
            forget_percentile=options.forget_percentile, ratio_percentile=options.ratio_percentile,
        )  # fmt: skip
        if not len(selected):
            raise UserError(
                "method.intervention: no feature of the autoencoder fires on the forget set and passes "
                "ratio_percentile; lower it, or check sae and layer"
            )
        part = sae.part(selected)
        shares = [share((part(h) > 0).any(-1), real) for h, real in self._states(model, retain)]
        threshold = torch.quantile(torch.cat(shares), options.threshold_percentile / 100)
        self.restore({
            "features": selected, "encode": part.encode, "encode_bias": part.encode_bias,
            "decode": part.decode, "jump": part.threshold, "threshold": threshold,
        })  # fmt: skip

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():  # their sizes depend on the data
            self._buffers[name] = tensor.clone()

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "sae": self.dsg.sae.name}  # without the path on this machine

    def tensors(self) -> dict[str, Tensor]:
        self._check_fitted()
        return self.state_dict()

    def hooks(self, model: Any) -> list[RemovableHandle]:
        self._check_fitted()
        self._bos = _bos(model)
        return [blocks(model)[self.dsg.layer].register_forward_hook(self._guard)]

    def begin(self) -> None:
        assert self.current is not None
        if self.current.start == 0:
            self._counts = None

    def between_passes(self) -> dict[str, Any]:
        return {**super().between_passes(), "_counts": None}

    def _guard(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        assert self.current is not None
        hidden = hidden_of(output)
        sae = SAE(self.encode, self.encode_bias, self.decode, self.jump)
        active, real = sae(hidden), _counted(self.current, self._bos)
        fired = (active > 0).any(-1)
        rho, self._counts = share_so_far(fired, real, self.current.prompt_end, self._counts)
        where = fired & real & (rho > self.threshold)
        changed = suppress(hidden, active, self.decode, self.dsg.strength)
        return edited(output, torch.where(where[..., None], changed, hidden))

    def _scores(self, model: nn.Module, sae: SAE, batches: Iterable[Batch]) -> Tensor:
        total, tokens = torch.zeros_like(sae.encode_bias, dtype=torch.float64), 0
        for hidden, real in self._states(model, batches):
            for part in hidden[real].split(_TOKENS):
                total += sae(part).sum(0, dtype=torch.float64)
                tokens += len(part)
        return scores(total, max(1, tokens))

    @torch.no_grad()
    def _states(self, model: nn.Module, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the output [B, T, D] of the block and which tokens count [B, T], batch by batch."""
        inner, seen = host(model), list[Tensor]()
        handle = blocks(model)[self.dsg.layer].register_forward_hook(
            lambda _, __, output: seen.append(hidden_of(output))
        )
        try:
            for batch in batches:
                ids = batch.input_ids
                layout = right_padded(batch.prompt_end, batch.widths, ids.shape[1])
                with laid_out(layout), head_on(inner, batch.index[:0]):
                    inner(input_ids=ids, use_cache=False)
                yield seen.pop(), _counted(Pass(layout, 0, ids), _bos(inner))
        finally:
            handle.remove()

    def _check_fitted(self) -> None:
        if not len(self.features):
            raise RuntimeError("a dsg intervention must be fitted before it is attached or saved: call fit")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Dsg:
        # It moves to the model's device and keeps its own precision.
        return super()._apply(lambda t: t.to(fn(t.new_empty(0)).device), recurse)


def _bos(model: Any) -> int | None:
    bos = model.config.get_text_config(decoder=True).bos_token_id
    return bos if isinstance(bos, int) else None


def _counted(current: Pass, bos: int | None) -> Tensor:
    real = current.real
    return real if bos is None else real & (current.input_ids != bos)
