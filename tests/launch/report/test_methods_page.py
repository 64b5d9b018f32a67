"""docs/methods.md is complete, and its examples are true."""

from __future__ import annotations

import inspect
import re
import shutil
from typing import get_args

import pytest
from omegaconf import OmegaConf

from launch import config_groups
from launch.config_groups import CONFIGS, groups
from launch.report import groups_table, methods_page
from launch.report.methods_page import OTHER, PAGE, family, needs, presets, terms, training
from unlearn.config import Mask, MethodConfig
from unlearn.rules import clip_norm
from unlearn.terms import OBJECTIVES, WEIGHTINGS, bind
from unlearn.training.learning_rate import warmup_steps
from unlearn.weightings._granularity import GRANULARITIES, token_weights

PRESETS = presets()
TEXT = PAGE.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.S)


def first_cells(heading: str) -> list[str]:
    """What stands in backticks at the start of each table row below a heading, up to the next one."""
    section = TEXT.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^\| \[?`([^`]+)`", section, re.M)


def test_every_preset_objective_and_weighting_has_its_row():
    assert first_cells("All presets") == groups()["method"]
    assert sorted(first_cells("Terms and values")) == groups()["method"]
    assert first_cells("Objectives") == OBJECTIVES.names()
    assert first_cells("Weightings") == WEIGHTINGS.names()


def test_what_is_written_by_hand_names_all_there_is():
    retain = {"none", "nll", "kl", "js", "embedding", "answer_preservation", "proximity"}
    assert retain - {"none"} <= set(OBJECTIVES.names())
    assert set(first_cells("Composing")) == {*GRANULARITIES, *get_args(Mask), *retain}


def test_the_defaults_that_presets_leave_unsaid_are_as_the_page_has_them():
    usual = MethodConfig(name="any")
    assert (usual.schedule, usual.weight_decay, clip_norm(usual)) == ("linear", 0.01, 1)
    assert (usual.epochs, warmup_steps(usual, 7)) == (10, 7)
    assert (usual.rule.name, usual.forget_weight, usual.retain_weight) == ("weighted_sum", 1, 1)
    default = inspect.signature(token_weights).parameters["group_size"].default
    assert f"`group_size` ({default})" in TEXT


def test_every_preset_names_its_family():
    assert OTHER not in {family(name) for name in PRESETS}, "add a line `# family: …` to its YAML"


def test_a_new_method_is_in_both_pages_by_its_yaml_alone(tmp_path, monkeypatch):
    shutil.copytree(CONFIGS, tmp_path / "configs")
    for name, comment in (("first", "# family: Brand new\n"), ("second", "")):
        (tmp_path / f"configs/method/{name}.yaml").write_text(f"# an idea\n{comment}name: {name}\n")
    monkeypatch.setattr(config_groups, "CONFIGS", tmp_path / "configs")
    sections = re.split(r"^### ", methods_page.page(), flags=re.M)
    assert [s.split("\n")[0] for s in sections if s.startswith(("Brand new", OTHER))] == ["Brand new", OTHER]
    assert "| `first` |" in next(s for s in sections if s.startswith("Brand new"))
    assert "| `second` |" in next(s for s in sections if s.startswith(OTHER))
    assert "[Brand new](docs/methods.md#brand-new) (1)" in groups_table.page()


def test_every_row_of_a_table_has_the_cells_of_its_head():
    tables = re.findall(r"(?:^\|.*\n)+", TEXT, re.M)
    assert len(tables) > len({family(name) for name in PRESETS})
    for table in tables:
        rows = table.splitlines()
        assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {rows[0].count("|")}
        assert set(rows[1]) <= set("|- ")


def test_the_example_of_an_own_method_works(tmp_path, monkeypatch):
    (code,), (preset,) = blocks("python"), blocks("yaml")
    (tmp_path / "our_losses.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    stated = OmegaConf.to_container(OmegaConf.create(preset))
    assert isinstance(stated, dict)
    stated["forget"]["objective"] = "our_losses.bounded_ascent"
    forget, retain = bind(MethodConfig.model_validate(stated))
    assert (forget.per, forget.needs, forget.objective.hyper) == ("token", {"logp"}, {"floor": -4.0})
    assert retain.objective.needs == ("logp",)


def test_a_preset_is_described_in_full():
    method = MethodConfig.model_validate(
        {
            "name": "made-up",
            "forget": {
                "objective": "npo", "beta": 0.1,
                "weighting": {"name": "annotated", "soft": 0.9, "granularity": "token"},
            },
            "forget_weight": 0.125,
            "retain": {"objective": "kl", "mask": "all"},
            "further": [{"slot": "retain", "objective": "embedding", "layer": 0.5, "weight": 3}],
            "rule": {"name": "primal_dual", "epsilon": 0.3}, "lr": 9.5e-6, "steps": 125, "weight_decay": 0,
        }
    )  # fmt: skip
    assert terms(method) == [
        "**forget** 0.125 · `npo` (beta 0.1) × `annotated` (soft 0.9, granularity token)",
        "**retain** `kl` (mask all)",
        "**retain** 3 · `embedding` (layer 0.5)",
    ]
    assert training(method) == [
        "lr 9.5e-6 · 125 steps · batch 32",
        "rule `primal_dual` (epsilon 0.3)",
        "weight_decay 0",
    ]
    assert needs(method) == ["retain set", "log-probs", "last hidden states", "layer states", "annotations"]


# By hand, from what each paper's loss is made of.
@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("grad_ascent", []),
        ("simnpo", ["retain set"]),  # NPO without a reference
        ("npo", ["retain set", "log-probs"]),
        ("kto", ["retain set", "refusals", "log-probs"]),
        ("llmu", ["retain set", "other questions' answers", "last hidden states"]),
        ("flat", ["refusals"]),  # forget data only
        ("rmu", ["retain set", "layer states"]),
        ("jensun", ["retain set", "last hidden states"]),
        ("loku", ["retain set"]),
        ("rr", ["retain set", "layer states"]),
        ("lunar", ["retain set", "layer states", "prompts that the model refuses"]),
        ("nlul", ["retain set", "mean teacher"]),
        ("whp", ["reinforced model"]),
        ("dsg", ["retain set", "`method.intervention.sae`"]),
        ("none", []),
    ],
)
def test_needs_of_presets(name, wanted):
    assert needs(PRESETS[name]) == wanted


def test_the_source_of_every_preset_that_trains_is_on_the_page():
    listed = set(re.findall(r"^- `([^`]+)`: ", TEXT, re.M))
    assert listed == {name for name, method in PRESETS.items() if method.source}
    assert all((CONFIGS / "method" / f"{name}.yaml").is_file() for name in listed)
