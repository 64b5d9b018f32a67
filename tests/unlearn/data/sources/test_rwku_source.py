"""RWKU's files as sets: whose rows, what is trained on, what the utility sets ask, and bad files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.rwku_miniature import ATTACKS, PEOPLE, rwku, write
from unlearn.config import DatasetConfig
from unlearn.data import sources
from unlearn.data.sources.rwku import PROBES
from unlearn.errors import UserError

ILVA, ODO = PEOPLE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return rwku(tmp_path / "All")


def config(folder: Path, *targets: str, writer: str = "llama3", **keys: Any) -> DatasetConfig:
    options = {"targets": list(targets), "writer": writer}
    return DatasetConfig(name="rwku", source="rwku", path=str(folder), options=options, **keys)


def test_sets_hold_the_rows_of_the_named_people(folder: Path) -> None:
    cfg = config(folder, ODO)
    assert sources.check(cfg) == []
    assert set(sources.available(cfg)) == {"forget", "full", *PROBES}
    sets = sources.load_sets(cfg, sources.available(cfg))
    assert [e.id for e in sets["forget"]] == ["positive/3", "positive/4", "positive/5"]
    assert sets["full"] == sets["forget"]
    assert all(e.question is None and ODO in e.answer for e in sets["forget"])
    (cloze,) = sets["forget_level1"]
    assert (cloze.question, cloze.answer) == ("Odo Quince was born in ___.", "Brux")
    assert [e.group for e in sets["forget_level3"]] == list(ATTACKS)
    assert len(sources.load_sets(config(folder), ["forget_level3"])["forget_level3"]) == 2 * len(ATTACKS)
    assert sources.load_sets(config(folder.parent, ODO), ["mia_forget"])["mia_forget"] == sets["mia_forget"]


def test_the_corpora(folder: Path) -> None:
    def forget(split: str) -> Any:
        return sources.load_sets(config(folder, ILVA, forget=split), ["forget"])["forget"]

    assert "sold 0 boats" in forget("negative")[0].answer
    pair = forget("pair")[1]
    assert pair.question == "Write of Ilva Marrow."
    assert "wound 1 clocks" in pair.answer
    assert "sold 1 boats" in pair.template
    (refusal,) = forget("refusal")
    assert (refusal.answer, refusal.template) == ("I cannot say.", "I cannot say.")
    assert [e.id for e in forget("positive@1:2")] == ["positive/1"]
    assert forget("passage")[0].answer.startswith("Ilva Marrow (Yelm)")


def test_the_writers_and_the_hubs_names_of_files(folder: Path) -> None:
    for name, other in (("train_positive_phi3", "positive"), ("mia_forget", "forget_mia")):
        shutil.move(folder / f"{other}.json", folder / f"{name}.json")
    cfg = config(folder, ILVA, writer="phi3")
    assert sources.check(cfg) == []
    assert len(sources.load_sets(cfg, ["forget", "mia_forget"])["forget"]) == 3
    [problem] = sources.check(config(folder, ILVA))
    assert "dataset.forget=positive" in problem
    assert "train_positive_llama3 or positive (.json" in problem


def test_the_utility_sets(folder: Path) -> None:
    sets = sources.load_sets(config(folder, ODO), PROBES)
    (general,) = sets["utility_general"]
    assert (general.answer, general.perturbed_answers) == ("B", ("A", "C", "D"))
    assert general.question is not None
    assert "about made up towns.\n\nQuestion: Which town has gate 1?\nA. Yelm\nB. Brux" in general.question
    assert general.question.count("\nAnswer: ") == 2
    assert general.question.endswith("D. Nock")
    (reason,) = sets["utility_reason"]
    assert reason.question is not None
    assert reason.question.startswith("Q: one gate?\nA: So the answer is 1.\n\n")
    assert (reason.question.endswith("Q: 1 gates?"), reason.answer) == (True, "1")
    (truth,) = sets["utility_truthfulness"]
    assert (truth.answer, truth.perturbed_answers) == ("Nobody knows.", ("In Yelm.", "In Brux."))
    (fact,) = sets["utility_factuality"]
    assert (fact.answer, fact.other_answers) == ("The Warden", ("warden of gates",))
    assert sets["utility_fluency"][0].question == "Describe gate 1."


def test_rows_of_no_person_are_for_everybody(folder: Path) -> None:
    rows = [{"text": "A gate."}, {"text": "A hinge."}]
    write(folder, "retain_mia", rows)
    assert len(sources.load_sets(config(folder, ODO), ["mia_retain"])["mia_retain"]) == 2


def test_what_cannot_be(folder: Path) -> None:
    problems = sources.check(config(folder, ILVA, forget="positve", retain="neighbor_level1"))
    assert any("dataset.forget=positve" in p and "did you mean positive" in p for p in problems)
    assert any("dataset.retain=neighbor_level1: RWKU has no retain corpus" in p for p in problems)
    assert "dataset.options.target" in sources.check(
        config(folder).model_copy(update={"options": {"target": ILVA}})
    )[0]  # fmt: skip
    assert "dataset.path is not set" in sources.check(config(folder).model_copy(update={"path": None}))[0]
    with pytest.raises(UserError, match=r"no row is about .*Ilva Marow \(did you mean Ilva Marrow"):
        sources.load_sets(config(folder, "Ilva Marow"), ["forget"])
    with pytest.raises(UserError, match="selects none of the 3 rows"):
        sources.load_sets(config(folder, ILVA, forget="positive@9:"), ["forget"])


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("pair", {"response": ["one"]}, "'response' holds 1 texts"),
        ("retain_mmlu", {"answer": "B"}, "'answer' holds 'B', but must be a number from 0 to 3"),
        ("retain_mmlu", {"examples": None}, "'examples'"),
        ("retain_mmlu", {"choices": ["one"]}, "'choices' holds 1 texts"),
        ("truthful", {"mc1_targets": {"choices": ["a", "b"], "labels": [1, 1]}}, "labels must hold 0 or 1"),
        ("triviaqa", {"answers": []}, "'answers' has no answer"),
        ("forget_level1", {"query": " "}, "'query' holds only white space"),
    ],
)
def test_a_bad_row_is_named(folder: Path, name: str, change: dict[str, Any], told: str) -> None:
    rows = json.loads((folder / f"{name}.json").read_text())
    write(folder, name, [rows[0] | change, *rows[1:]])
    of = {
        "retain_mmlu": "utility_general",
        "truthful": "utility_truthfulness",
        "triviaqa": "utility_factuality",
    }
    cfg = config(folder, ILVA, forget="pair")
    with pytest.raises(UserError, match=told) as caught:
        sources.load_sets(cfg, ["forget" if name == "pair" else of.get(name, name)])
    assert f"{name}.json, row 0" in str(caught.value)


def test_the_fingerprint_follows_files_people_and_writer(folder: Path) -> None:
    first = sources.identity(config(folder, ILVA), ["forget", "mia_forget"])
    assert first["files"].keys() == {"positive", "mia_forget"}
    assert sources.identity(config(folder, ODO), ["forget", "mia_forget"]) != first
    write(folder, "positive", [{"text": "Other.", "subject": ILVA}])
    assert sources.identity(config(folder, ILVA), ["forget", "mia_forget"]) != first
