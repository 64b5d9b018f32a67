"""A judge that is a model on this machine: the probability of yes against no as its next word."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from eval.llm_judge.verdicts import Verdict
from unlearn.config import ModelConfig, PromptConfig
from unlearn.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from unlearn.data.tokenization import Encoder

_PLAIN = "{question}\nVerdict:"  # where the tokenizer has no chat template
_LONGEST = 1 << 20  # the model's own positions bound a prompt


class LocalJudgeError(UserError):
    """The model cannot judge; the message names it and says why."""


def yes_share(logits: Tensor, yes: list[int], no: list[int]) -> float:
    """Return P(yes)/(P(yes) + P(no)) from the logits of one position, [V]; NaN where they are not finite."""
    values = logits.double()
    return float((values[yes].logsumexp(-1) - values[no].logsumexp(-1)).sigmoid())


@dataclass(frozen=True)
class LocalJudge:
    """A causal model of a folder or the hub, on `device`, in bf16 on a GPU and fp32 elsewhere.

    Its weights are loaded for the first prompt.
    """

    path: str
    revision: str | None
    device: torch.device
    concurrency: int = 1

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"local": weights(self.path, self.revision)}

    def __call__(self, prompt: str) -> Verdict:
        import torch

        model, encoder, yes, no = self._loaded
        [ids] = encoder.prompts([prompt])
        limit = encoder.limits.positions
        if limit is not None and len(ids) > limit:
            return Verdict(math.nan, f"the prompt has {len(ids)} tokens, and the judge reads {limit}")
        with torch.inference_mode():
            out = model(input_ids=torch.tensor([ids], device=self.device), logits_to_keep=1)
        return Verdict(yes_share(out.logits[0, -1], yes, no), "")

    @cached_property
    def _loaded(self) -> tuple[nn.Module, Encoder, list[int], list[int]]:
        import torch

        from unlearn.models.load import in_precision, read_model
        from unlearn.models.skeleton import limits
        from unlearn.models.tokenizer import load_tokenizer, make_encoder

        config = _config(self.path, self.revision)
        tokenizer = load_tokenizer(config)
        template = None if tokenizer.chat_template else _PLAIN
        config = config.model_copy(update={"prompt": PromptConfig(template=template)})
        encoder = make_encoder(config, tokenizer, _LONGEST, limits(config, None))
        yes, no = words(tokenizer, self.path)
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        model = in_precision(read_model(config, dtype), self.device, dtype)
        return model.eval(), encoder, yes, no


def weights(path: str, revision: str | None) -> Mapping[str, Any]:
    """Return what identifies the weights of a judge, without loading them."""
    from unlearn.models.load import identity

    return identity(_config(path, revision))


def _config(path: str, revision: str | None) -> ModelConfig:
    return ModelConfig(name="judge", path=path, revision=revision)


def words(tokenizer: Any, path: str) -> tuple[list[int], list[int]]:
    """Return the first tokens of the spellings of yes, and of no, without those that both have.

    Raises:
        LocalJudgeError: no token distinguishes them.
    """
    sets = []
    for word in ("yes", "no"):
        spelt = [f"{space}{form}" for form in (word, word.capitalize(), word.upper()) for space in ("", " ")]
        ids = tokenizer(spelt, add_special_tokens=False)["input_ids"]
        blank = {tokenizer(" ", add_special_tokens=False)["input_ids"][0]}
        sets.append({row[0] for row in ids if row} - blank)
    yes, no = sets[0] - sets[1], sets[1] - sets[0]
    if not yes or not no:
        raise LocalJudgeError(f"{path}: no token of this model begins only yes, or only no: take another")
    return sorted(yes), sorted(no)
