"""`unlearn show`: values with their places, words of the plug-ins, BibTeX."""

from __future__ import annotations

import re

import pytest

from launch.commands.papers import bibtex, cited, entries
from launch.commands.plug_ins import KINDS, documentation
from launch.config_groups import CONFIGS, comment, groups
from tests.launch.commands import done, unlearn


def rows(shown: str) -> dict[str, tuple[str, str]]:
    """Return value and place by key, of the lines between `values` and the next empty one."""
    lines = shown.partition("values, and where each comes from\n")[2].partition("\n\n")[0].splitlines()
    cells = (re.split(r" {2,}", line.strip()) for line in lines)
    return {key: (value, place) for key, value, place in cells}


def test_a_method_is_shown_with_its_values_formula_and_papers(tmp_path):
    shown = done(tmp_path, "show", "method=simnpo").out
    assert "source  SimNPO (2410.07163) and its code" in shown
    assert "terms   forget 0.125 · simnpo (beta 4.5, delta 0); retain nll" in shown
    values = rows(shown)
    assert values["method.forget.beta"] == ("4.5", "configs/method/simnpo.yaml")
    assert values["method.batch"] == ("32", "the schema's default")
    assert {"method.rule.name", "method.weight_decay", "method.lr", "method.alternatives.count"} <= {*values}
    assert "−(2/β) log σ(β(s − δ)) of each answer, s its mean loss per token in nats." in shown
    assert entries()["2410.07163"] in shown


def test_options_of_plug_ins_are_among_the_values(tmp_path):
    values = rows(done(tmp_path, "show", "method=grun").out)
    assert values["method.intervention.rank"] == ("4", "configs/method/grun.yaml")
    assert values["method.intervention.gate"] == ("mlp", "the default of intervention grun")
    assert values["method.further.0.label"] == ("1", "configs/method/grun.yaml")
    values = rows(done(tmp_path, "show", "method=dsg").out)
    assert values["method.intervention.sae"] == ("not set", "intervention dsg needs it")
    values = rows(done(tmp_path, "show", "eval=robust").out)
    assert values["eval.variants.relearning.batch"] == ("8", "the default of variant relearning")


def test_each_value_of_an_option_of_ones_own_has_the_file_that_sets_it(tmp_path):
    folder = tmp_path / "configs" / "method"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# mine\ndefaults: [npo, _self_]\nname: mine\nforget: {beta: 0.5}\n")
    values = rows(done(tmp_path, "show", "method=mine").out)
    assert values["method.forget.beta"] == ("0.5", "configs/method/mine.yaml")
    assert values["method.lr"] == ("1e-05", "configs/method/npo.yaml")


def test_an_experiment_is_shown_with_its_sweep(tmp_path):
    shown = done(tmp_path, "show", "experiment=optuna-npo").out
    assert re.search(r"^  method +npo$", shown, re.MULTILINE)
    assert re.search(r"^  method.lr, of the sweep +tag\(log, interval", shown, re.MULTILINE)


def test_a_plug_in_is_shown_with_its_options(tmp_path):
    shown = done(tmp_path, "show", "objective=npo", "probe=geffect", "benchmark=muse").out
    assert "statistics  logp, ref_logp, lengths, weights" in shown
    assert re.search(r"^  beta +not set +number > 0$", shown, re.MULTILINE)
    assert "probe.every" in shown  # the group of that name comes first
    assert entries()["2407.06460"] in shown


@pytest.mark.slow
def test_a_method_of_each_family_and_every_evaluation_and_dataset_can_be_shown(tmp_path):
    families = {comment("method", name, "family"): f"method={name}" for name in groups()["method"]}
    others = [f"{group}={name}" for group in ("eval", "dataset") for name in groups()[group]]
    shown = done(tmp_path, "show", *families.values(), *others).out
    assert all(f"{option}\n" in shown for option in (*families.values(), *others))


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("method", "method: write what to show as group=option"),
        ("methd=npo", "methd=npo: there is no such group and no such kind of plug-in (did you mean method?)"),
        ("method=nop", "did you mean"),
        ("objective=npp", "objective=npp: no such objective (did you mean npo?)"),
        ("method=npo,wga", "several values are a sweep"),
    ],
)
def test_what_is_not_there_is_refused(tmp_path, argument, says):
    shown = unlearn(tmp_path, "show", argument)
    assert shown.code == 2
    assert says in shown.err


def test_every_paper_that_an_option_or_a_plug_in_names_has_an_entry_and_no_other_has():
    texts = [file.read_text() for file in CONFIGS.rglob("*.yaml")]
    for each in KINDS.values():
        texts += [documentation(each.kind.find(name, name)) for name in each.kind.names()]
    assert {number for text in texts for number in cited(text)} == {*entries()}


def test_an_entry_has_what_a_citation_needs():
    for number, entry in entries().items():
        assert re.match(r"@misc\{\w+,\n", entry), number
        assert all(f"\n  {field} = {{" in entry for field in ("title", "author", "year", "eprint"))
        assert entry.count("{") == entry.count("}")
    keys = re.findall(r"@misc\{(\w+)", "".join(entries().values()))
    assert len(keys) == len({*keys})


def test_a_paper_without_an_entry_is_linked():
    assert bibtex("as in 1234.56789") == "% https://arxiv.org/abs/1234.56789 has no entry in papers.bib"
