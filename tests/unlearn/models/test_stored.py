"""Models whose parameters stay in their files: the same values, no copies, nothing written back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from benches.loading import make_llama
from unlearn.config import ModelConfig
from unlearn.models import export, load, nano, stored
from unlearn.models.shards import write_shards

SHAPE: dict[str, Any] = {
    "vocab_size": 301, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1,
}  # fmt: skip
CPU = torch.device("cpu")


def of(folder: Path) -> ModelConfig:
    return ModelConfig(name="test", path=str(folder))


def whole(folder: Path) -> Any:
    """As transformers loads it in fp32."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def assert_same(model: Any, expected: Any) -> None:
    for name in ("named_parameters", "named_buffers"):
        own, theirs = dict(getattr(model, name)()), dict(getattr(expected, name)())
        assert own.keys() == theirs.keys()
        for key, tensor in theirs.items():
            assert own[key].dtype == tensor.dtype, key
            assert torch.equal(own[key], tensor), key


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_is_what_transformers_loads(tmp_path: Path, dtype: torch.dtype) -> None:
    make_llama(tmp_path, dtype, **SHAPE)
    read = load.read_model(of(tmp_path), torch.float32)
    assert {p.dtype for p in read.parameters()} == {dtype}
    assert_same(load.in_precision(read, CPU, torch.float32), whole(tmp_path))


def test_a_head_of_its_own_stays_where_the_configuration_ties_it(tmp_path: Path) -> None:
    make_llama(tmp_path, torch.float32, **SHAPE)
    weights, file = load_file(tmp_path / "model.safetensors"), tmp_path / "config.json"
    weights["lm_head.weight"] = 2 * weights["model.embed_tokens.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    file.write_text(json.dumps({**json.loads(file.read_text()), "tie_word_embeddings": True}))
    model: Any = load.read_model(of(tmp_path), torch.float32)
    head = model.get_output_embeddings().weight
    assert torch.equal(head, 2 * model.get_input_embeddings().weight)
    assert not model.config.tie_word_embeddings
    assert not export.architecture(model).config.tie_word_embeddings  # so that both are saved


def test_buffers_are_those_of_fp32(tmp_path: Path) -> None:
    # Its embeddings are scaled by √32, a buffer in the model's dtype: 5.6569 in fp32, 5.65625 in bf16.
    config = transformers.Gemma3TextConfig(**SHAPE, head_dim=16)
    model: Any = transformers.Gemma3ForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    read = load.read_model(of(tmp_path), torch.float32)
    assert {p.dtype for p in read.parameters()} == {torch.bfloat16}
    assert_same(load.in_precision(read, CPU, torch.float32), whole(tmp_path))


def test_several_precisions_are_read_in_that_of_the_computation(tmp_path: Path) -> None:
    make_llama(tmp_path, torch.bfloat16, **SHAPE)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float() + 1e-5  # not a bf16 number
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for dtype in (torch.float32, torch.bfloat16):
        read = load.read_model(of(tmp_path), dtype)
        assert_same(
            load.in_precision(read, CPU, dtype), load.in_precision(load.load_model(of(tmp_path)), CPU, dtype)
        )


def test_tensors_of_another_layout(tmp_path: Path) -> None:
    """Experts are stored one by one, and are one tensor in the model."""
    config = transformers.MixtralConfig(**SHAPE, num_local_experts=2)
    model: Any = transformers.MixtralForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "first")
    read = load.read_model(of(tmp_path / "first"), torch.float32)
    assert_same(load.in_precision(read, CPU, torch.float32), whole(tmp_path / "first"))
    export.save_streamed(model, model.state_dict().items(), nano.tokenizer(300), tmp_path / "second")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert first.keys() == second.keys() != model.state_dict().keys()
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())


def test_files_are_not_written_to(tmp_path: Path) -> None:
    make_llama(tmp_path, torch.float32, **SHAPE)
    before = (tmp_path / "model.safetensors").read_bytes()
    model = load.in_precision(load.read_model(of(tmp_path), torch.float32), CPU, torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_deferred_parameters_take_no_memory_and_come_back(tmp_path: Path) -> None:
    make_llama(tmp_path, torch.bfloat16, **SHAPE)
    model: Any = stored.defer(load.read_model(of(tmp_path), torch.bfloat16))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert max(p.untyped_storage().nbytes() for p in model.parameters()) == 4
    stored.replace(model, {"model.norm.weight": torch.full((32,), 2.0)})
    stored.fill(model, CPU, torch.float32)
    expected = whole(tmp_path)
    expected.model.norm.weight.data.fill_(2.0)
    assert_same(model, expected)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("limit", [10**9, 40_000])
def test_files_are_those_of_transformers(tmp_path: Path, tied: bool, limit: int) -> None:
    model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE, tie_word_embeddings=tied))
    model.save_pretrained(tmp_path / "theirs", max_shard_size=limit)
    (tmp_path / "ours").mkdir()
    plain = export.architecture(model, torch.float32)
    left_out = set(plain.all_tied_weights_keys)
    shapes = {name: t for name, t in plain.state_dict().items() if name not in left_out}
    # In another order, and with the tensors that are tied.
    write_shards(tmp_path / "ours", shapes, [*model.state_dict().items()][::-1], limit=limit)
    theirs = {file.name: file for file in (tmp_path / "theirs").glob("model*")}
    assert theirs.keys() == {file.name for file in (tmp_path / "ours").iterdir()}
    for name, file in theirs.items():
        if name.endswith(".json"):
            assert json.loads(file.read_text()) == json.loads((tmp_path / "ours" / name).read_text())
            continue
        own, wanted = load_file(tmp_path / "ours" / name), load_file(file)
        assert own.keys() == wanted.keys()
        assert all(torch.equal(own[key], tensor) for key, tensor in wanted.items())


def test_a_missing_tensor_is_no_model(tmp_path: Path) -> None:
    shapes = {"a": torch.empty(2, device="meta"), "b": torch.empty(3, dtype=torch.int64, device="meta")}
    with pytest.raises(RuntimeError, match="no tensor b"):
        write_shards(tmp_path, shapes, [("a", torch.ones(2))])
    with pytest.raises(RuntimeError, match="a has shape"):
        write_shards(tmp_path, shapes, [("a", torch.ones(3))])
