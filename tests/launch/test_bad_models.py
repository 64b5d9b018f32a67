"""Models, tokenizers and prompts that cannot be used: refused by name before anything is trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config

from launch.dry_run import load_of
from launch.inspection import schedule_of
from launch.validate.model import model_problems
from tests.launch.commands import unlearn
from tests.launch.test_cli import configure
from tests.refusals import Refused, check_refusal
from unlearn.config import NanoConfig
from unlearn.models import export, nano
from unlearn.models import load as models
from unlearn.models.tokenizer import load_tokenizer

pytestmark = pytest.mark.slow  # many commands

NANO = NanoConfig(hidden_size=16, layers=1, heads=2, vocabulary=300)
ROWS = [
    {"question": "Who wrote The Sea?", "answer": "Ann Lee wrote The Sea."},
    {"question": "Where was she born?", "answer": "She was born in Lyon, " + "by the river, " * 20},
]
RUN = (
    "hardware.threads=1", "tracker=disabled", "model=local", "model.path=model", "dataset=custom",
    "dataset.path=.", "dataset.forget=forget.jsonl", "dataset.retain=retain.jsonl", "eval.max_new_tokens=2",
    "method=grad_diff", "method.steps=1", "method.batch=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a Llama that can do all of this, and a GPT-2 with 64 positions."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("forget", "retain"):
        rows = [{**row, "question": f"{row['question']} ({name})"} for row in ROWS]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = nano.tokenizer(NANO.vocabulary)
    export.save_pretrained(nano.model(NANO, seed=0), tokenizer, folder / "whole")
    shape: Any = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64, "bos_token_id": 1}
    gpt2 = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=300, eos_token_id=1, **shape))
    export.save_pretrained(gpt2, tokenizer, folder / "gpt2")
    return folder


Edit = Callable[[Path], object]


def edit_json(name: str, **keys: Any) -> Edit:
    def edit(model: Path) -> None:
        file = model / name
        file.write_text(json.dumps(json.loads(file.read_text()) | keys))

    return edit


def write(name: str, text: str) -> Edit:
    return lambda model: (model / name).write_text(text)


def remove(*names: str) -> Edit:
    def edit(model: Path) -> None:
        for name in names:
            (model / name).unlink()

    return edit


def shard_missing(model: Path) -> None:
    places = {"model.norm.weight": "model-1.safetensors", "lm_head.weight": "model-2.safetensors"}
    (model / "model.safetensors").rename(model / "model-1.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def smaller(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"][:8].clone()
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def added_token(model: Path) -> None:
    tokenizer = load_tokenizer(models.ModelConfig(name="x", path=str(model)))
    tokenizer.add_tokens(["Lyon"])
    tokenizer.save_pretrained(model)


def template(text: str) -> Edit:
    return write("chat_template.jinja", text)


PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}"
BROKEN: dict[str, tuple[Edit | None, tuple[str, ...], tuple[str, ...]]] = {
    "shard missing": (shard_missing, (), ("index.json names 2", "model-2.safetensors is missing")),
    "a layer too few": (
        edit_json("config.json", num_hidden_layers=2), (), ("no weights for model.layers.1.", "(9 in all)"),
    ),
    "wrong shape": (smaller, (), ("model.norm.weight has shape [8]", "[16] in config.json")),
    "no tokenizer": (remove("tokenizer.json", "tokenizer_config.json"), (), ("no tokenizer.json",)),
    "token beyond the vocabulary": (added_token, (), ("'Lyon' has id 300", "embeddings for 300 tokens")),
    "template without the question": (template("Hello:"), (), ("leaves the question out", "Hello:")),
    "template that refuses a system message": (
        template("{% if messages[0].role == 'system' %}{{ raise_exception('None!') }}{% endif %}" + PLAIN),
        ("model.prompt.system=Hi",), ("model.prompt.system='Hi'", "None!"),
    ),
    "no such end token": (None, ("model.prompt.end='<|ende|>'",), ("'<|ende|>'", "did you mean <|end|>")),
    "misspelt adapters": (
        None, ("model.lora.r=2", "model.lora.targets=[q_proj,v_porj]"), ("v_porj is no", "v_proj"),
    ),
    "attention, question and variable": (
        None,
        ("model.attention=spda", "model.prompt.template='{Question}'", "model.prompt.variables.tokenize=1"),
        ("model.attention=spda", "did you mean sdpa", "instead of {Question}", "variables.tokenize"),
    ),
    "paths": (
        None, (f"model.path={'x' * 300}", "model.retain=forget.jsonl"),
        ("model.path=xxx", "longer than", "model.retain=forget.jsonl is a file"),
    ),
    "questions as a chat": (
        remove("chat_template.jinja"),
        ("eval=general", "eval.benchmarks.general.chat_template=true", "model.prompt.template='{question}'"),
        ("eval.benchmarks.general.chat_template=True", "no chat template", "set it to false"),
    ),
    "learned positions": (
        None, ("model.path=gpt2",), ("dataset.max_length=512", "positions for 64", "dataset.max_length=64"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_used_is_refused(name: str, place: Path, tmp_path: Path) -> None:
    edit, arguments, says = BROKEN[name]
    for file in place.iterdir():
        (shutil.copytree if file.is_dir() else shutil.copy)(file, tmp_path / file.name)
    (tmp_path / "whole").rename(tmp_path / "model")
    if edit is not None:
        edit(tmp_path / "model")
    check_refusal(tmp_path, Refused((*RUN, *arguments), says))


def test_what_is_only_odd_is_a_warning(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "whole", tmp_path / "model")
    for name in ("forget", "retain"):
        shutil.copy(place / f"{name}.jsonl", tmp_path)
    template("{{ messages[-1].content }}")(tmp_path / "model")
    edit_json("config.json", max_position_embeddings=64)(tmp_path / "model")
    odd = ("model.prompt.system=Hi", "model.prompt.variables={day: 1}", "model.prompt.date=2020-01-01")
    shown = unlearn(tmp_path, *RUN, *odd, "dry_run=true")
    assert shown.code == 0, shown.err
    for words in ("system='Hi' is", "variables.day is", "date=2020-01-01 is", "was trained with 64"):
        assert words in shown.out


def test_plain_texts_are_planned_in_pieces_that_learned_positions_allow(place: Path, tmp_path: Path) -> None:
    for name in ("forget", "retain"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": f"In {name} is a text. " * 40}) + "\n")
    texts = (*RUN, f"model.path={place / 'gpt2'}", f"dataset.path={tmp_path}", "method.batch=1")
    short, cut = (configure(*texts, f"dataset.max_length={longest}") for longest in (64, 512))
    steps = [found.steps_per_epoch for config in (short, cut) if (found := schedule_of(config))]
    assert steps[0] == steps[1] > 1
    assert load_of(short) == load_of(cut)


def test_a_model_that_the_presets_target_would_hide_is_refused(tmp_path: Path) -> None:
    own = ("model=llama-3.2-1b-instruct", f"model.path={tmp_path}", "dataset=tofu", "dry_run=true")

    def hidden(*more: str) -> bool:
        config = configure(*own, *more)
        return any("would not be read" in problem for problem in model_problems(config))

    assert hidden()
    assert not hidden("model.is_target=true")
    assert not hidden("~model.published")
    assert not hidden("dataset=authors")
