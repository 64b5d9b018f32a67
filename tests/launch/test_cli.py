"""The command line as a user meets it: what it refuses and with which words, what it shows."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from launch.cli import command
from launch.compose import checked, compose_run, force_overrides, yaml_of
from launch.config_groups import describe, groups, values_of
from launch.run.plan import make_plan
from launch.validate import check
from launch.validate.model import model_problems
from tests.worlds import together
from unlearn.config import MethodConfig, RunConfig
from unlearn.errors import ConfigError
from unlearn.plugins import FOLDERS


def configure(*arguments: str) -> RunConfig:
    overrides = force_overrides(arguments)
    composed = compose_run(overrides, hydra=True)
    return checked(composed, overrides, composed.hydra.runtime.choices)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a small dataset, a broken one and a folder that is no model."""
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"q{i}?", "answer": f"a{i}"} for i in range(5)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    Path("forget.jsonl").write_text(text)
    Path("retain.jsonl").write_text(text)
    Path("notes.txt").write_text("nothing")
    Path("folder").mkdir()
    tofu = Path("tofu")
    tofu.mkdir()
    for split in (
        "full", "forget10", "forget10_perturbed", "retain90", "retain_perturbed",
        "real_authors_perturbed", "world_facts_perturbed",
    ):  # fmt: skip
        (tofu / f"{split}.json").write_text(text)
    return tmp_path


# Each: the arguments, and what the message must name (key, value, place, fix).
NOT_FINITE = [
    "method.epochs=inf", "method.warmup_epochs=inf", "method.lr=inf", "model.lr_scale=inf",
    "method.forget_weight=nan", "method.retain_weight=nan", "method.update_scale=nan",
]  # fmt: skip
REFUSED = {
    "misspelt group": (["methd=npo"], ["methd='npo'", "command line", "did you mean method?"]),
    "misspelt option": (["method=nop"], ["method=nop", "configs/method/nop.yaml", "npo"]),
    "unknown option": (["hardware=tpu"], ["hardware=tpu", "did you mean gpu or cpu?"]),
    "misspelt key": (["method.learning_rate=1"], ["method.learning_rate=1", "there is no such key"]),
    "near key in a term": (
        ["method.betta=1"],
        ["method.betta=1", "did you mean method.forget.beta or betas?"],
    ),
    "near key": (["method.epoch=3"], ["method.epoch=3", "did you mean epochs"]),
    "misspelt hyper-parameter": (["method.forget.bta=1"], ["method.forget.bta=1", "did you mean beta?"]),
    "missing hyper-parameter": (
        ["method.forget={objective: npo}", "~method.forget.beta"],
        ["method.forget.beta is not set", "npo needs it"],
    ),
    "hyper-parameter of a wrong type": (
        ["method.forget.beta=soft"],
        ["method.forget.beta='soft'", "a valid number"],
    ),
    "unknown objective": (["method.forget.objective=nop"], ["method.forget.objective=nop", "npo"]),
    "retain set for a method without": (
        ["method=flat", "method.retain=nll"],
        ["method.retain", "flat uses only forget data and templates", "forget_only=false"],
    ),
    "unknown weighting": (
        ["method=satimp", "method.forget.weighting.name=satim"],
        ["method.forget.weighting.name=satim", "did you mean"],
    ),
    "annotations absent": (
        ["method=grad_diff", "method.forget.weighting=annotated"],
        ["dataset.annotations is not set"],
    ),
    "answers absent": (
        ["method=dpo", "method.alternatives.path=gone.txt"],
        ["method.alternatives.path=gone.txt", "there is no such file"],
    ),
    "rate from a loss that is not there": (
        ["method=flat", "method.schedule=auto"],
        ["method.auto_lr.loss=retain", "there is no retain term"],
    ),
    "gates without an edit": (
        ["method.further=[{slot: forget, objective: gate, label: 1}]"],
        ["method.intervention is not set", "name: grun"],
    ),
    "edit with adapters": (["method=grun", "model.lora.r=4"], ["model.lora.r=4", "grun"]),
    "guardrail without its autoencoder": (["method=dsg"], ["method.intervention.sae is not set"]),
    "edit that trains nothing, with terms": (
        ["method=npo", "method.intervention={name: contrast}"],
        ["method.intervention.name=contrast trains nothing"],
    ),
    "layer out of the model": (
        ["method=rmu", "method.forget.layer=9"],
        ["method.forget.layer=9", "the model has 4 layers"],
    ),
    "probe without an objective": (
        ["method=none", "probe=geffect"],
        ["probe.method is not set", "probe.method=npo"],
    ),
    "probe of a method that is not there": (
        ["method=none", "probe=geffect", "probe.method=npp"],
        ["probe.method=npp", "did you mean npo"],
    ),
    "probe of a method with a running average": (
        ["method=none", "probe=geffect", "probe.method=nlul"],
        ["probe.method: nlul uses a running average of the weights", "measure it while it trains"],
    ),
    "probe of a method with an edit": (
        ["method=none", "probe=geffect", "probe.method=grun"],
        ["probe.method: grun uses an intervention"],
    ),
    "probe of a method whose rule has a state": (
        ["method=none", "probe=geffect", "probe.method=rr"],
        ["probe.method: rr uses the state of rule scheduled"],
    ),
    "models to probe in a training": (
        ["method=npo", "probe=geffect", "probe.models=[gone]"],
        ["probe.models: requires method=none", "gone matches no folder"],
    ),
    "probe of what trains nothing": (
        ["method=whp", "probe=geffect"],
        ["probe.name=geffect: method whp trains nothing"],
    ),
    "unknown rule": (["method.rule.name=sum"], ["method.rule.name=sum", "weighted_sum"]),
    "wrong type": (["method.lr=fast"], ["method.lr='fast'", "command line", "valid number"]),
    "neither a number nor auto": (
        ["hardware.micro_tokens=automatic"],
        [
            "1 problem",
            "hardware.micro_tokens='automatic' (command line): input should be a valid integer or 'auto'",
        ],
    ),
    "neither a switch nor auto": (
        ["hardware.activation_checkpointing=maybe"],
        ["1 problem", "hardware.activation_checkpointing='maybe'", "valid boolean or 'auto'"],
    ),
    "no list of names": (
        ["model.lora.targets=[1,x]"],
        [
            "1 problem",
            "model.lora.targets=[1, 'x'] (command line): input should be a valid string",
            "'all-linear'",
        ],
    ),
    "negative number": (["method.batch=-3"], ["method.batch=-3", "greater than 0"]),
    "not a choice": (["hardware.zero=4"], ["hardware.zero=4", "0, 1, 2 or 3"]),
    "seed": (["seed=one"], ["seed='one'", "integer"]),
    "batch and hardware": (
        ["hardware.processes=2", "hardware.micro_batch=5"],
        ["method.batch=32", "hardware.processes=2", "hardware.micro_batch=5", "divisor"],
    ),
    "fewer examples than processes": (
        ["method.batch=2", "hardware.processes=4"],
        ["method.batch=2", "processes=4"],
    ),
    "offload without zero": (["hardware.offload=true"], ["hardware.offload=True", "hardware.zero=2 or 3"]),
    "bf16 gradients in fp32": (
        ["hardware.gradients=bf16"],
        ["hardware.gradients=bf16", "hardware.dtype=bf16"],
    ),
    "no GPU": (["hardware=gpu"], ["hardware.device=cuda", "hardware=cpu"]),
    "local without a path": (["model=local"], ["model.path is not set", "folder"]),
    "no such folder": (["model=local", "model.path=./nowhere"], ["model.path=./nowhere", "no such folder"]),
    "not a model": (["model=local", "model.path=./folder"], ["model.path=./folder", "no config.json"]),
    "retain model missing": (["model.retain=./nowhere"], ["model.retain=./nowhere", "no such folder"]),
    "no such split": (
        ["dataset=tofu", "dataset.path=./tofu", "dataset.retain=retain09"],
        ["dataset.retain=retain09", "tofu", "did you mean retain90"],
    ),
    "no perturbed split": (
        ["dataset=tofu", "dataset.path=./tofu", "dataset.forget=forget05"],
        ["dataset.forget=forget05", "retain95", "forget05_perturbed"],
    ),
    "no such dataset folder": (
        ["dataset=tofu", "dataset.path=./gone"],
        ["dataset.path=./gone", "no such folder"],
    ),
    "unknown source": (["dataset.source=tufo"], ["dataset.source=tufo", "tofu"]),
    "missing file": (
        ["dataset=custom", "dataset.forget=gone.jsonl"],
        ["dataset.forget=gone.jsonl", "no such file"],
    ),
    "unreadable kind": (["dataset=custom", "dataset.forget=notes.txt"], ["notes.txt", ".jsonl"]),
    "no retain set": (
        ["dataset=custom", "dataset.forget=forget.jsonl", "method=grad_diff"],
        ["method.retain", "dataset.retain", "method.retain=null"],
    ),
    "forget split of authors": (["dataset.forget=half"], ["dataset.forget=half", "forget10"]),
    "unknown dataset option": (["dataset.options.writers=3"], ["dataset.options.writers"]),
    "unknown benchmark": (["eval.benchmarks.toffee={}"], ["eval.benchmarks.toffee", "tofu"]),
    "unknown benchmark option": (
        ["eval.benchmarks.tofu.truth=1"],
        ["eval.benchmarks.tofu.truth=1", "did you mean truth_ratio"],
    ),
    "wrong value of a benchmark option": (
        ["eval.benchmarks.tofu.truth_ratio=harmonic"],
        ["eval.benchmarks.tofu.truth_ratio='harmonic'", "geometric"],
    ),
    "benchmark of other data": (["eval=muse"], ["eval.benchmarks.muse", "verbmem", "authors", "dataset="]),
    "one of several": (["eval=[tofu,samplin]"], ["eval=samplin", "sampling"]),
    "unknown variant": (["eval.variants.quantization={}"], ["eval.variants.quantization", "quantisation"]),
    "unknown variant option": (
        ["eval.variants.quantisation={bit: [4]}"],
        ["eval.variants.quantisation.bit", "bits"],
    ),
    "no such retain log": (["model.retain_log=gone.json"], ["model.retain_log", "gone.json"]),
    "a log that is none": (["model.retain_log=notes.txt"], ["model.retain_log", "notes.txt", "JSON"]),
    "retain model and log": (
        ["model.retain_log=notes.txt", "model.retain=./folder"],
        ["model.retain_log=notes.txt", "one of the two"],
    ),
    "tracker mode": (["tracker.mode=on"], ["tracker.mode", "'online'"]),
    "interpolation to nowhere": (["method.lr=${nothing}"], ["nothing"]),
    "unparsable": (["method.forget={beta"], ["method.forget"]),
    "nano with a path": (["model.path=./folder"], ["model.path=./folder", "model=local"]),
    "a file for authors": (
        ["dataset.path=./tofu"],
        ["dataset.path=./tofu", "source authors", "dataset=tofu"],
    ),
    "holdout split of authors": (["dataset.holdout=xyz"], ["dataset.holdout=xyz", "holdout"]),
    "revision of nano": (["model.revision=abc"], ["model.revision=abc", "leave it out"]),
    "shape of a model that exists": (
        ["model=local", "model.path=./folder", "model.nano.layers=9", "model.revision=abc"],
        ["model.nano.layers=9", "model=nano", "model.revision=abc", "a local folder"],
    ),
    "heads": (["model.nano.heads=7"], ["model.nano.heads=7", "hidden_size=128"]),
    "division by zero": (
        ["method=npo", "method.forget.beta=0"],
        ["method.forget.beta=0: ", "greater than 0"],
    ),
    "percent for a share": (
        ["method.forget.weighting={name: top_k, keep: 30}"],
        ["method.forget.weighting.keep=30: ", "less than or equal to 1"],
    ),
    "groups without tokens": (
        ["method.forget.weighting={name: simsat, beta: 1, granularity: group, group_size: 0}"],
        ["method.forget.weighting.group_size=0: ", "greater than 0"],
    ),
    "an exponent that is no number": (
        ["method=npo", "method.forget.beta=inf"],
        ["method.forget.beta=inf: ", "finite number"],
    ),
    "not finite": (NOT_FINITE, NOT_FINITE),
    "more epochs than can be counted": (["method.epochs=1e300"], ["method.epochs=1e+300"]),
    "a variant's option that is not finite": (
        ["eval.variants.relearning={lr: inf}"],
        ["eval.variants.relearning.lr=inf", "finite number"],
    ),
    "a seed beyond 64 bits": (
        ["seed=99999999999999999999999"],
        ["seed=99999999999999999999999", "less than"],
    ),
    "a direction's seed": (
        ["method=rmu", "method.forget.seed=99999999999999999999999"],
        ["method.forget.seed=99999999999999999999999", "less than"],
    ),
    "betas": (["method.betas=[0.9,1.5]"], ["method.betas", "[0, 1)"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_with_its_name_its_place_and_the_fix(name, files):
    arguments, words = REFUSED[name]
    with pytest.raises(ConfigError) as refused:
        check(configure(*arguments))
    for word in words:
        assert word in str(refused.value), str(refused.value)
    assert not (files / "runs").exists()


def test_a_revision_of_the_hub_and_the_shape_of_a_model_that_is_built_are_read():
    assert model_problems(configure("model=qwen2.5-1.5b-instruct", "model.revision=main")) == []
    assert model_problems(configure("model.nano.layers=9")) == []


def test_all_problems_are_reported_at_once():
    with pytest.raises(ConfigError) as refused:
        configure("method.lr=x", "hardware.zero=9", "modle.name=a", "seed=-1")
    assert len(refused.value.problems) == 4


def test_the_command_refuses_with_code_2_and_no_traceback(capsys, files):
    assert command(["method.epoch=3"]) == 2
    shown = capsys.readouterr().err
    assert "did you mean epochs" in shown
    assert "Traceback" not in shown


def test_a_refusal_of_the_schema_loads_no_torch():
    code = (
        "import sys; from launch.cli import command; assert command(['method.lr=x']) == 2; "
        "assert not {'torch', 'transformers', 'deepspeed', 'wandb'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.slow
def test_a_dry_run_of_the_default_imports_no_models(tmp_path):
    """Those of transformers take longer to import than the rest of a dry run."""
    code = (
        "import sys; from launch.cli import command; assert command(['dry_run=true']) == 0; "
        "assert 'torch' in sys.modules; "
        "left = {'transformers.modeling_utils', 'torch._dynamo', 'deepspeed', 'plotly'} & set(sys.modules); "
        "assert not left, left"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


ALL = groups()


# One option of each group in a command; recipes are composed, with all their elements, in test_sweep.py.
TOGETHER = [group for group in ALL if group not in ("method", "experiment")]
ROWS = list(itertools.zip_longest(*(ALL[group] for group in TOGETHER)))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: " ".join(filter(None, row)))
def test_every_option_composes(row):
    chosen = {group: option for group, option in zip(TOGETHER, row, strict=True) if option}
    config = configure(*(f"{group}={option}" for group, option in chosen.items()))
    for group in ("eval", "tracker"):  # without a name, and with one for several options
        chosen.pop(group, None)
    assert {group: getattr(config, group).name for group in chosen} == chosen


def test_every_option_describes_itself():
    for group, options in ALL.items():
        for option in options:
            assert len(describe(group, option)) > 10, (group, option)


@pytest.fixture(scope="module")
def plain() -> RunConfig:
    return configure()


def with_values(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """The configuration with other values by dotted key, checked by the schema."""
    keys = OmegaConf.create(config.model_dump())
    for key, value in values.items():
        OmegaConf.update(keys, key, value)
    return RunConfig.model_validate(OmegaConf.to_container(keys))


@pytest.mark.parametrize("method", ALL["method"])
def test_every_method_binds(method, tmp_path, plain):
    sae = tmp_path / "sae.safetensors"
    save_file({name: torch.zeros(1) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}, sae)
    refused = tmp_path / "refused.txt"
    refused.write_text("What is the password of my neighbour?\n")
    needs: dict[str, dict[str, Any]] = {
        "dsg": {"method.intervention.sae": str(sae)},
        "lunar": {"method.forget.refused_prompts": str(refused), "model.nano.layers": 23},
        **{name: {"model.nano.layers": 8} for name in ("rmu-wmdp", "rmu-wmdp-openunlearning")},
    }
    stated = MethodConfig.model_validate(values_of("method", method))
    config = with_values(plain.model_copy(update={"method": stated}), needs.get(method, {}))
    check(config)
    assert config.method.name == method


def test_a_method_of_your_own_may_build_on_another(tmp_path, monkeypatch):
    (tmp_path / "method").mkdir()
    text = "defaults: [npo, _self_]\nname: mine\nforget: {beta: 0.5}\n"
    (tmp_path / "method" / "mine.yaml").write_text(text)
    monkeypatch.setenv(FOLDERS, str(tmp_path))
    stated = MethodConfig.model_validate(values_of("method", "mine"))
    npo = MethodConfig.model_validate(values_of("method", "npo"))
    assert stated.forget == {**(npo.forget or {}), "beta": 0.5}
    assert (stated.name, stated.retain) == ("mine", npo.retain)


def test_any_key_of_the_schema_can_be_set_whether_or_not_a_file_names_it():
    config = configure(
        "method.retain_weight=2", "model.lora.r=8", "method.forget.beta=0.5", "eval.every_steps=3"
    )
    assert (config.method.retain_weight, config.model.lora.r, config.eval.every_steps) == (2.0, 8, 3)
    assert config.method.forget == {"objective": "npo", "beta": 0.5}
    assert configure("method.retain=null").method.terms.keys() == {"forget"}


def test_the_first_element_of_a_sweep_is_checked():
    assert configure("seed=3,4", "method=satimp,npo").seed == 3
    with pytest.raises(ConfigError, match="nop"):
        configure("method=npo,nop")


def test_the_composed_configuration_reads_back(capsys):
    assert command(["--cfg", "job", "method=wga", "seed=7"]) == 0
    shown = OmegaConf.to_container(OmegaConf.create(capsys.readouterr().out))
    assert RunConfig.model_validate(shown) == configure("method=wga", "seed=7")
    assert yaml_of(configure("method=wga")).count("\n") > 60


def test_help_names_every_group_option_and_key(capsys):
    assert command(["--help"]) == 0
    shown = capsys.readouterr().out
    for group, options in ALL.items():
        assert f"{group}=" in shown
        assert all(option[:20] in shown for option in options)
    assert "hardware.micro_tokens" in shown
    assert all(
        word in shown for word in ("hydra/launcher=joblib", "hydra/launcher=slurm", "hydra/sweeper=optuna")
    )


def write_fingerprint(file: Path, *arguments: str) -> None:
    """By another process, whose texts have other hashes."""
    file.write_text(make_plan(configure(*arguments)).main.job.fingerprint)


class TestFingerprint:
    @staticmethod
    def of(config: RunConfig, **values: Any) -> str:
        return make_plan(with_values(config, values)).main.job.fingerprint

    def test_a_date_counts_where_it_was_chosen(self, plain):
        usual, other = (
            self.of(plain, **{"model.prompt.date": date}) for date in ("26 Jul 2024", "2025-01-01")
        )
        assert usual == self.of(plain) != other

    @pytest.mark.slow
    def test_it_is_stable(self, tmp_path):
        # Changes only when the same configuration would give other numbers; then count _FORMAT up.
        together(1, write_fingerprint, tmp_path / "fingerprint", "method=wga")
        assert (tmp_path / "fingerprint").read_text() == self.of(configure("method=wga"))

    def test_hardware_does_not_change_it(self, plain):
        assert self.of(configure("hardware=cpu-2p", "tracker=disabled")) == self.of(plain)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("hardware.micro_tokens", 100), ("eval.max_new_tokens", 3), ("checkpoint.keep", 3),
            ("model.name", "other"), ("root", "elsewhere"), ("save_model", False),
        ],
    )  # fmt: skip
    def test_names_and_evaluation_do_not_change_it(self, plain, key, value):
        assert self.of(plain, **{key: value}) == self.of(plain)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("seed", 1), ("method.lr", 2e-5), ("method.forget.beta", 0.2), ("dataset.forget", "forget05"),
            ("dataset.options.seed", 1), ("model.nano.layers", 2), ("model.lr_scale", 3), ("model.lora.r", 4),
            ("method.retain", None), ("dataset.max_length", 64), ("model.finetune.epochs", 3),
        ],
    )  # fmt: skip
    def test_science_changes_it(self, plain, key, value):
        assert self.of(plain, **{key: value}) != self.of(plain)

    def test_a_probe_of_saved_models_is_another_with_another_seed(self):
        saved = ["method=none", "probe=geffect", "probe.method=npo", "eval=none"]
        usual, drawn = (
            self.of(configure(*saved, f"seed={seed}", "model.kind=hf", "model.path=x")) for seed in (0, 1)
        )
        assert usual != drawn

    def test_one_target_serves_every_forget_split_and_seed(self):
        targets = {
            make_plan(configure(*a)).runs[0].directory
            for a in (["seed=1", "dataset.forget=forget05"], ["method=wga", "hardware=cpu-2p"])
        }
        assert len(targets) == 1


def test_the_plan_of_a_dry_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command(["dry_run=true", "method=satimp"]) == 0
    shown = capsys.readouterr().out
    for role in ("build the", "retain model", "evaluate", "MiB"):
        assert role in shown
    assert list(tmp_path.iterdir()) == []
