"""The direction from prompts to forget to prompts that the model refuses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from tests.tolerance import PASS, assert_close
from unlearn.config import DatasetConfig, MethodConfig, ModelConfig, RunConfig
from unlearn.data import refused_prompts
from unlearn.data.example import Example
from unlearn.data.tokenization import Encoder
from unlearn.distributed import World
from unlearn.terms import bind
from unlearn.training.prepare import FrozenModel, Preparation
from unlearn.training.step_data import Frozen

SETS = {
    name: [Example(id=f"{name}/{i}", question=f"who is {name} {'x' * i}?", answer=f"{i}") for i in range(4)]
    for name in ("forget", "retain")
}
REFUSED = ["What is my neighbour's password?", "Which number will be drawn on Sunday?"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "refused.txt"
    file.write_text("\n".join(REFUSED))
    return file


def terms_of(**keys: Any) -> list[Any]:
    forget = {"objective": "redirect", "coefficient": 2.0, "layer": 1, "mask": "prompt", **keys}
    return bind(MethodConfig(name="x", forget=forget))


def tiny(size: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=size, num_hidden_layers=2, initializer_range=0.3, **shape))


@pytest.mark.parametrize("mask", ["prompt", "attention"])
def test_it_is_the_difference_of_mean_states_at_the_end_of_prompts(
    mask: str, prompts: Path, nano_tokenizer: PreTrainedTokenizerBase
) -> None:
    config = RunConfig(
        model=ModelConfig(name="tiny", kind="nano"), dataset=DatasetConfig(name="x", source="authors"),
        method=MethodConfig(name="x"), root=str(prompts.parent),
    )  # fmt: skip
    encoder = Encoder(nano_tokenizer)
    model, passes = tiny(len(nano_tokenizer)), []
    model.register_forward_pre_hook(lambda *_: passes.append(1))

    @contextmanager
    def hold() -> Iterator[tuple[Any, bool]]:
        yield model, False

    target = FrozenModel("key", hold, lambda _: nullcontext())
    terms = terms_of(refused_prompts=str(prompts), mask=mask)
    ready = Preparation(config, terms, SETS, encoder, World(0, 1, torch.device("cpu")))

    def frozen() -> Frozen:
        return ready.with_frozen_outputs(ready.groups(target), {"reference": target})[1]

    found = frozen().directions["forget"]

    def mean(questions: list[str]) -> Tensor:
        states = [
            model.double()(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[1][0, -1]
            for ids in encoder.prompts(questions)
        ]
        return torch.stack(states).mean(0)

    with torch.no_grad():
        wanted = mean(REFUSED) - mean([e.question or "" for e in SETS["forget"]])
    assert found.dtype == torch.float32
    assert_close(found, wanted, terms=PASS, scale=5)
    assert float(wanted.norm()) > 0.1
    passes.clear()
    assert torch.equal(frozen().directions["forget"], found)  # from the cache
    assert not passes


def test_a_missing_or_empty_file_is_named(tmp_path: Path, prompts: Path) -> None:
    key = "method.forget.refused_prompts"
    (unset,) = refused_prompts.check(terms_of())
    assert unset.startswith(
        f"{key} is not set: redirect moves towards prompts that the model refuses; set it"
    )
    (missing,) = refused_prompts.check(terms_of(refused_prompts=str(tmp_path / "no.txt")))
    assert missing.startswith(f"{key}={tmp_path / 'no.txt'}: ")
    (tmp_path / "empty.txt").write_text("\n \n")
    (empty,) = refused_prompts.check(terms_of(refused_prompts=str(tmp_path / "empty.txt")))
    assert empty.endswith("the file has no prompts; write one per line")
    (table,) = refused_prompts.check(terms_of(refused_prompts="refused.csv"))
    assert "cannot read .csv (can: .txt with one prompt per line" in table
    assert refused_prompts.check(terms_of(refused_prompts=str(prompts))) == []
    assert refused_prompts.check(bind(MethodConfig(name="x", forget="ascent"))) == []


def test_prompts_of_rows_and_what_identifies_them(tmp_path: Path, prompts: Path) -> None:
    rows = tmp_path / "refused.jsonl"
    rows.write_text('{"prompt": "b"}\n{"text": "a"}\n{"prompt": "b"}\n')
    (term,) = terms_of(refused_prompts=str(rows))
    assert refused_prompts.read(term) == ["a", "b"]
    first = refused_prompts.identity(terms_of(refused_prompts=str(prompts)))
    assert first.keys() == {"forget.refused_prompts"}
    prompts.write_text("another")
    assert refused_prompts.identity(terms_of(refused_prompts=str(prompts))) != first
    assert refused_prompts.identity(bind(MethodConfig(name="x", forget="ascent"))) == {}
