"""`unlearn schema`: every file of the project fits it, and mistakes do not."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from launch.commands.schema import of_group, whole
from launch.compose import checked, compose_run, force_overrides
from launch.config_groups import CONFIGS, groups, option_file
from tests.launch.commands import done, unlearn
from tests.launch.subcommands.json_schema import problems

pytestmark = pytest.mark.slow  # many plug-ins


@cache
def schema_of(group: str) -> dict[str, Any]:
    return whole() if group == "" else of_group(group)


def configuration(*arguments: str) -> dict[str, Any]:
    return checked(compose_run(force_overrides(arguments))).model_dump(mode="json")


def wrong(value: Any, group: str = "") -> list[str]:
    return problems(value, schema_of(group), schema_of(group))


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("method=grun", "eval=robust", "probe=geffect"),
        ("method=satimp", "dataset=tofu", "method.retain=kl"),
    ],
)
def test_a_composed_configuration_fits(arguments):
    assert wrong(configuration(*arguments)) == []


@pytest.mark.parametrize("group", ["model", "dataset", "method", "hardware", "eval", "probe", "tracker"])
def test_every_file_of_a_group_fits(group):
    for option in groups()[group]:
        file = option_file(group, option)
        if "@package _global_" not in file.read_text():
            assert wrong(OmegaConf.to_container(OmegaConf.load(file)), group) == [], option


def test_every_experiment_fits():
    for file in sorted((CONFIGS / "experiment").glob("*.yaml")):
        assert wrong(OmegaConf.to_container(OmegaConf.load(file)), "experiment") == [], file.name


# Each: keys of a composed configuration to replace, and the key that is at fault.
MISTAKES: dict[str, dict[str, Any]] = {
    "method.epoch": {"method.epoch": 3},
    "method.lr": {"method.lr": "fast"},
    "method.batch": {"method.batch": 0},
    "method.forget.bta": {"method.forget": {"objective": "npo", "bta": 0.1}},
    "method.forget.weighting.beta3": {
        "method.forget": {"objective": "ascent", "weighting": {"name": "satimp", "beta3": 1.0}}
    },
    "method.rule.rates": {"method.rule": {"name": "primal_dual", "rates": 1.0}},
    "method.intervention.ranks": {"method.intervention": {"name": "grun", "ranks": 1}},
    "model.finetune.epoch": {"model.finetune": {"epoch": 1}},
    "dataset.options.author": {"dataset.options": {"author": 3}},
    "eval.benchmarks.tofu.mio": {"eval.benchmarks": {"tofu": {"mio": True}}},
    "eval.variants.relearning.step": {"eval.variants": {"relearning": {"step": [5]}}},
    "probe.example": {"probe": {"name": "geffect", "example": 1}},
    "tracker.entitty": {"tracker": {"name": "wandb", "entitty": "me"}},
}


@pytest.mark.parametrize("key", MISTAKES)
def test_a_mistake_does_not_fit(key):
    config = OmegaConf.create(configuration())
    for place, value in MISTAKES[key].items():
        OmegaConf.update(config, place, value, merge=False)
    found = wrong(OmegaConf.to_container(config))
    assert found
    assert all(each.startswith(f".{key}:") for each in found), found


@pytest.mark.parametrize(
    "own",
    [
        {"method.forget": {"objective": "my_losses.bounded", "floor": -4}},
        {"dataset.source": "towns", "dataset.options": {"towns": 8}},
        {"eval.benchmarks": {"weakest": {"any": 1}}},
        {"probe": {"name": "confidence", "examples": 4}},
    ],
)
def test_a_plug_in_of_ones_own_has_any_options(own):
    config = OmegaConf.create(configuration())
    for place, value in own.items():
        OmegaConf.update(config, place, value, merge=False)
    assert wrong(OmegaConf.to_container(config)) == []


def test_it_goes_to_a_file_or_to_standard_output(tmp_path: Path):
    shown = done(tmp_path, "schema", "method")
    assert json.loads(shown.out)["properties"]["lr"]["description"] == "peak learning rate"
    assert done(tmp_path, "schema", "--out", "whole.json").out == "written: whole.json\n"
    assert json.loads((tmp_path / "whole.json").read_text()) == json.loads(json.dumps(whole()))


def test_a_group_that_is_not_there_is_refused(tmp_path: Path):
    shown = unlearn(tmp_path, "schema", "methods")
    assert (shown.code, shown.err) == (2, "methods: there is no such group (did you mean method?)\n")
