"""Saved adapters in place of a model: found, merged, identified, and refused with a way out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from peft import LoraConfig as PeftLora
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from tests.tolerance import PASS, assert_close
from unlearn.config import LoraConfig, ModelConfig, NanoConfig
from unlearn.models import adapt, export, nano
from unlearn.models import load as models
from unlearn.models.locate import ModelError, find, model_problem, resolve
from unlearn.models.skeleton import limits, skeleton
from unlearn.models.tokenizer import load_tokenizer
from unlearn.probes import saved_models

SHAPE = NanoConfig(hidden_size=16, layers=2, heads=2, vocabulary=300)
IDS = torch.arange(40).reshape(2, 20)


def config(**keys: Any) -> ModelConfig:
    return ModelConfig.model_validate({"name": "test", **keys})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    export.save_pretrained(nano.model(SHAPE, seed=1), nano.tokenizer(SHAPE.vocabulary), folder)
    return folder


@pytest.fixture(scope="module")
def adapted(base: Path) -> Callable[[Any], Any]:
    """A model with adapters on the given modules that change what it computes."""

    def build(targets: Any) -> Any:
        lora = LoraConfig.model_validate({"r": 4, "alpha": 8, "targets": targets})
        model = adapt.add_lora(models.load_model(config(path=str(base))), lora, 0)
        with nano.seeded(9):
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    nn.init.normal_(parameter, std=0.2)
        return model

    return build


def save(model: Any, base: Path, folder: Path) -> Path:
    located = find(config(path=str(base)), None)
    export.save_adapter(model, model.state_dict(), nano.tokenizer(SHAPE.vocabulary), folder, base=located)
    return folder


@pytest.fixture(scope="module")
def adapter(adapted: Callable[[Any], Any], base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To be read only."""
    return save(adapted("all-linear"), base, tmp_path_factory.mktemp("adapter") / "adapter")


@pytest.fixture
def copied(adapter: Path, tmp_path: Path) -> Path:
    shutil.copytree(adapter, tmp_path / "adapter")
    return tmp_path / "adapter"


def edit(folder: Path, name: str = "adapter_config.json", **keys: Any) -> None:
    (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | keys))


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings")
@pytest.mark.parametrize("targets", ["all-linear", ["lm_head", "q_proj"], ["embed_tokens"]], ids=str)
def test_a_saved_adapter_is_the_merged_model(
    adapted: Callable[[Any], Any], targets: Any, base: Path, tmp_path: Path
) -> None:
    """Also where it is on one of the tied embeddings and head."""
    model = adapted(targets)
    wanted = model(IDS).logits
    folder = save(model, base, tmp_path / "adapter")
    loaded, plain = models.load_model(config(path=str(folder))), models.load_model(config(path=str(base)))
    assert (plain(IDS).logits - wanted).abs().max() > 0.01
    assert_close(loaded(IDS).logits, wanted, terms=PASS)
    assert_close(PeftModel.from_pretrained(plain, str(folder))(IDS).logits, wanted, terms=PASS)
    assert type(loaded) is type(nano.model(SHAPE, seed=0))
    assert all(parameter.requires_grad for parameter in loaded.parameters())

    export.save_pretrained(loaded, nano.tokenizer(SHAPE.vocabulary), tmp_path / "merged")
    again = models.load_model(config(path=str(tmp_path / "merged")))
    assert torch.equal(again(IDS).logits, loaded(IDS).logits)


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings")
@pytest.mark.parametrize(
    "keys", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"init_lora_weights": "pissa"}], ids=str
)
def test_an_adapter_that_peft_has_saved(keys: dict[str, Any], base: Path, tmp_path: Path) -> None:
    settings = PeftLora(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **keys)
    model: Any = get_peft_model(models.load_model(config(path=str(base))), settings)
    with nano.seeded(9):
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "magnitude" not in name:
                parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    loaded = models.load_model(config(path=str(tmp_path)))
    assert_close(loaded(IDS).logits, model.eval()(IDS).logits, terms=PASS)


def test_it_is_described_by_its_base(adapter: Path) -> None:
    cfg = config(path=str(adapter))
    assert models.depth(cfg) == 2
    assert limits(cfg).vocabulary == 300
    state = torch.get_rng_state()
    located, model = resolve(cfg, None), skeleton(cfg)
    names = [name for name, _ in model.named_modules()]
    assert located is not None
    assert located.adapter is not None
    assert adapt.check_saved(model, located.adapter) == []
    assert [name for name, _ in model.named_modules()] == names
    models.load_model(cfg)
    assert torch.equal(torch.get_rng_state(), state)


def test_saved_twice_its_files_are_the_same(adapter: Path, adapted: Any, base: Path, tmp_path: Path) -> None:
    again = save(adapted("all-linear"), base, tmp_path / "again")
    assert {file.name for file in again.iterdir()} == {file.name for file in adapter.iterdir()}
    for file in again.iterdir():
        assert file.read_bytes() == (adapter / file.name).read_bytes(), file.name
    named = json.loads((again / "adapter_config.json").read_text())["target_modules"]
    assert named == sorted(named)


def test_a_base_below_the_home_directory_is_named_without_it(
    adapted: Any, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(base.parent))
    folder = save(adapted(["q_proj"]), base, tmp_path / "adapter")
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "~/model"
    assert models.depth(config(path=str(folder))) == 2


def test_another_base_by_its_key(copied: Path, base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "other")
    expected = models.load_model(config(path=str(copied)))(IDS).logits
    edit(copied, base_model_name_or_path="/no/such/folder")
    with pytest.raises(ModelError, match=r"base /no/such/folder .*no such folder.*model\.base=/folder"):
        models.load_model(config(path=str(copied)))
    cfg = config(path=str(copied), base=str(tmp_path / "other"))
    assert torch.equal(models.load_model(cfg)(IDS).logits, expected)
    with pytest.raises(ModelError, match=r"model\.base=.*is a whole model, no adapter: leave it out"):
        models.load_model(config(path=str(base), base=str(tmp_path / "other")))


def test_its_identity_covers_base_and_adapter(copied: Path, base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "other")
    cfg = config(path=str(copied), base=str(tmp_path / "other"))
    known = models.identity(cfg)
    assert known == models.identity(config(path=str(copied)))
    assert models.identity(config(path=str(base))) == {"content": known["content"]}
    (copied / "README.md").write_text("Notes.")
    assert models.identity(cfg) == known
    for folder, name in ((copied, "adapter_model.safetensors"), (tmp_path / "other", "model.safetensors")):
        weights = bytearray((folder / name).read_bytes())
        weights[-1] ^= 1
        (folder / name).write_bytes(weights)
        changed, known = known, models.identity(cfg)
        assert changed != known, name
    assert models.identity(config(path="a/b", base="c/d")) == {"hub": "a/b@main", "base": {"hub": "c/d@main"}}


def test_its_tokenizer_is_its_own_or_that_of_the_base(copied: Path, base: Path, tmp_path: Path) -> None:
    (copied / "chat_template.jinja").write_text("own")
    assert load_tokenizer(config(path=str(copied))).chat_template == "own"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (copied / name).unlink()
    expected = load_tokenizer(config(path=str(base))).chat_template
    assert load_tokenizer(config(path=str(copied))).chat_template == expected
    assert load_tokenizer(config(kind="nano"), str(copied)).chat_template == expected


def test_one_of_the_hub(adapter: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the hub's cache on disk, where a download would have put it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for name, folder in (("adapter", adapter), ("base", base)):
        repository = tmp_path / f"models--lab--{name}"
        shutil.copytree(folder, repository / "snapshots" / "0a1b")
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0a1b")
    files = tmp_path / "models--lab--adapter" / "snapshots" / "0a1b"
    cfg = config(path="lab/adapter")
    with pytest.raises(ModelError, match=r"is a folder of this machine: name it, model\.base=/folder"):
        models.load_model(cfg)
    edit(files, base_model_name_or_path="lab/base")
    expected = models.load_model(config(path=str(adapter)))(IDS).logits
    assert torch.equal(models.load_model(cfg)(IDS).logits, expected)
    assert torch.equal(models.load_model(config(path=str(files)))(IDS).logits, expected)
    assert models.depth(cfg) == 2
    assert load_tokenizer(cfg).chat_template
    assert models.identity(cfg) == {"hub": "lab/adapter@main"}
    assert models.identity(config(path=str(files)))["hub"] == "lab/base@main"

    absent = tmp_path / "models--lab--base" / ".no_exist" / "0a1b" / "adapter_config.json"
    absent.parent.mkdir(parents=True)
    absent.touch()  # as after an answer of the hub
    with pytest.raises(ModelError, match=r"model\.base=x/y: .*lab/base is a whole model"):
        models.load_model(config(path="lab/base", base="x/y"))
    absent.unlink()
    shutil.copy(adapter / "adapter_config.json", tmp_path / "models--lab--base" / "snapshots" / "0a1b")
    with pytest.raises(ModelError, match="its base lab/base is an adapter itself"):
        models.load_model(cfg)


def nested(folder: Path) -> None:
    shutil.copytree(folder, folder.parent / "inner")
    edit(folder, base_model_name_or_path=str(folder.parent / "inner"))


def quantised(folder: Path) -> None:
    other = folder.parent / "quantised"
    shutil.copytree(
        json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"], other
    )
    edit(other, "config.json", quantization_config={"quant_method": "bitsandbytes"})
    edit(folder, base_model_name_or_path=str(other))


def pickled(folder: Path) -> None:
    torch.save({}, folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()


UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no base": (lambda f: edit(f, base_model_name_or_path=None), r"names no base model.*model\.base=/folder"),
    "base not there": (lambda f: edit(f, base_model_name_or_path="./gone"), r"base \./gone.*no such folder"),
    "base of itself": (lambda f: edit(f, base_model_name_or_path=str(f)), "is the adapter itself"),
    "base is an adapter": (nested, "inner is an adapter itself.*merge_and_unload"),
    "quantised base": (quantised, r"its base .*quantised \(bitsandbytes.*or name the base: model\.base"),
    "pickled": (pickled, r"no adapter_model\.safetensors.*pickle.*save_pretrained"),
    "of another kind": (lambda f: edit(f, peft_type="IA3"), "peft_type IA3.*only LoRA.*merge it once"),
    "broken": (lambda f: (f / "adapter_config.json").write_text("{"), r"adapter_config\.json is broken"),
    "weights cut short": (
        lambda f: (f / "adapter_model.safetensors").write_bytes(b"1234"), r"model\.safetensors is broken"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_cannot_be_used(name: str, copied: Path) -> None:
    change, message = UNUSABLE[name]
    change(copied)
    problem = model_problem("model.path", str(copied), trust=False) or ""
    assert problem.startswith(f"model.path={copied}"[:79])
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(problem)


def test_files_that_do_not_fit_the_base(copied: Path, base: Path, tmp_path: Path) -> None:
    weights = load_file(copied / "adapter_model.safetensors")
    first = min(weights)
    cfg = config(path=str(copied))

    def saved(tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, copied / "adapter_model.safetensors", metadata={"format": "pt"})

    saved({name: tensor for name, tensor in weights.items() if name != first})
    with pytest.raises(ModelError, match=r"no weights for .*lora_A\.weight \(1 in all\)"):
        models.load_model(cfg)
    saved(weights | {first: weights[first][:, :8].clone()})
    with pytest.raises(ModelError, match=r"shape \[4, 8\] in the adapter, and \[4, 48\] for its base"):
        models.load_model(cfg)
    saved(weights | {"base_model.model.more": weights[first].clone()})
    located = resolve(cfg, None)
    assert located is not None
    assert located.adapter is not None
    (warning,) = adapt.check_saved(skeleton(cfg), located.adapter)
    assert "1 tensors of the adapter are not used, such as base_model.model.more" in warning
    saved(weights)
    edit(copied, target_modules=["no_such"])
    with pytest.raises(ModelError, match=r"the adapter does not fit its base.*no_such"):
        models.load_model(cfg)


def test_a_probe_finds_adapters_among_saved_models(adapter: Path, base: Path) -> None:
    assert saved_models([str(adapter), str(base.parent / "*")]) == [adapter, base]
