"""Data that a run cannot use is refused by the command before anything is made: files and options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launch.inspection import inspect
from launch.run.plan import make_plan
from launch.validate import check
from tests.launch.test_cli import configure
from tests.refusals import Refused, check_refusal
from unlearn.data.sources import load_sets
from unlearn.errors import UserError

pytestmark = pytest.mark.slow  # many commands

ROWS = [{"question": f"Which shelf holds book {i}?", "answer": f"Shelf {i}."} for i in range(12)]
FORGET, RETAIN = ROWS[:5], ROWS[5:]
MORE = {"paraphrased_answer": "It is shelf 9.", "perturbed_answer": ["Shelf 90.", "Shelf 91."]}


def lines(rows: list[Any], **options: Any) -> str:
    return "".join(json.dumps(row, **options) + "\n" for row in rows)


def row(**columns: Any) -> str:
    """Four good rows and one with these columns, the fourth."""
    return lines([*FORGET[:3], {**FORGET[3], **MORE, **columns}, FORGET[4]])


# Each: the content of forget.jsonl, and what the message has to say after the key and the file.
FILES: dict[str, tuple[str | bytes, str]] = {
    "a text for wrong answers": (
        row(perturbed_answer="Ninety."),
        "row 3 (line 4): column 'perturbed_answer' holds",
    ),
    "null among wrong answers": (
        row(perturbed_answer=[None]),
        "column 'perturbed_answer', item 0 holds null",
    ),
    "objects for wrong answers": (row(perturbed_answer=[{"text": "x"}]), "item 0 holds an object with text"),
    "an empty wrong answer": (row(perturbed_answer=["x", ""]), "column 'perturbed_answer', item 1 is empty"),
    "a list for an answer in other words": (
        row(paraphrased_answer=["x"]),
        "column 'paraphrased_answer' holds a list",
    ),
    "a number for a question in other words": (row(paraphrased_question=3), "holds the number 3"),
    "a number for an answer": (row(answer=42), "column 'answer' holds the number 42"),
    "an empty answer": (row(answer=""), "column 'answer' is empty"),
    "a blank question": (row(question=" \t"), "column 'question' holds only white space"),
    "no question": (row(question=None), "column 'question' holds null"),
    "an object for a template": (row(template={}), "column 'template' holds an object with nothing"),
    "utf-16": (lines(FORGET).encode("utf-16"), "text in UTF-16; save it as UTF-8"),
    "latin-1": (
        '{"question": "Où?", "answer": "Là."}'.encode("latin-1"),
        "line 1: not text in UTF-8 (byte 0xf9",
    ),
    "gzip": (b"\x1f\x8b\x08", "a gzip file"),
    "NUL": (lines(FORGET).replace("0", "\0"), "line 1: holds a NUL character"),
    "NaN": (lines([{**FORGET[0], "answer": float("nan")}]), "line 1: not JSON (NaN is not JSON"),
    "columns": (
        json.dumps({"question": ["a"], "answer": ["b"]}),
        "one JSON object of columns (question, answer)",
    ),
    "empty": ("", "the file has no rows"),
    "an empty list": ("[]", "the file has no rows"),
    "csv": ("question,answer\na,b\n", "is it a CSV file?"),
}

# Each: the arguments in addition to those of the good files below, and the words of the message.
ARGUMENTS: dict[str, tuple[list[str], str]] = {
    "a misspelt column option": (
        ["dataset.options.columns={question: prompt, anwser: response}"],
        "dataset.options.columns.anwser=response: source custom has no option anwser (did you mean answer?)",
    ),
    "columns that are none": (["dataset.options.columns=text"], "dataset.options.columns='text': "),
    "a column that is not there": (
        ["dataset.options.columns={question: q, answer: a}"],
        "neither 'q' and 'a' nor 'text' (columns: question, answer)",
    ),
    "one column that is not there": (
        ["dataset.options.columns={answer: a}"],
        "column 'a' is missing (columns: question, answer); name it by dataset.options.columns.answer",
    ),
    "a slice of nothing": (
        ["dataset.forget=forget.jsonl@90:95"],
        "dataset.forget=forget.jsonl: @90:95 selects none of its 5 rows",
    ),
    "no slice": (
        ["dataset.forget=forget.jsonl@5"],
        "there is no such file (select rows as forget.jsonl@",
    ),
    "a long name": ([f"dataset.forget={'x' * 300}.jsonl"], "the name is longer than the file system allows"),
    "through a file": (["dataset.path=forget.jsonl"], "forget.jsonl is a file, not a folder"),
    "a folder": (
        ["dataset.forget=folder.jsonl"],
        "dataset.forget=folder.jsonl: this is a folder, not a file",
    ),
    "a broken link": (["dataset.forget=link.jsonl"], "the symbolic link leads to gone, which does not exist"),
    "broken parquet": (
        ["dataset.forget=bad.parquet"],
        "dataset.forget=bad.parquet: it cannot be read as parquet",
    ),
    "the retain set is the forget set": (
        ["dataset.retain=forget.jsonl"],
        "dataset.retain=forget.jsonl: the retain set is the forget set (the same 5 examples)",
    ),
    "texts for questions": (["dataset.forget=texts.json"], "texts/0 has no question, only a text"),
    "answers in latin-1": (
        ["method=dpo", "method.alternatives.path=latin.txt"],
        "method.alternatives.path=latin.txt, line 1: not text in UTF-8",
    ),
    "no template": (
        ["method=idk", "method.alternatives.source=column"],
        "forget/0 has no text in the column",
    ),
    "an autoencoder without tensors": (
        ["method=dsg", "method.intervention.sae=bad.safetensors"],
        "method.intervention.sae=bad.safetensors: cannot be read",
    ),
    "annotations of nothing": (
        ["method.forget.weighting=annotated", "dataset.annotations=empty.json"],
        "dataset.annotations=empty.json: no entry for forget/0",
    ),
    "what is relearned in latin-1": (
        ["eval=[tofu,relearning]", "eval.variants.relearning.text=latin.txt"],
        "eval.variants.relearning.text=latin.txt, line 1: not text in UTF-8",
    ),
    "a misspelt key of the method that builds": (
        ["model.finetune.epoch=1"],
        "model.finetune.epoch=1: method finetune has no option epoch (did you mean epochs?)",
    ),
    "a folder of tasks that is a file": (
        ["eval=general", "eval.benchmarks.general.include_path=latin.txt"],
        "include_path=latin.txt: this is a file, not a folder",
    ),
    "a hub for authors": (
        ["dataset=tofu", "dataset.path=forget.jsonl"],
        "dataset.path=forget.jsonl: this is a file",
    ),
    "options of a source without": (
        ["dataset=tofu", "dataset.path=org/data", "+dataset.options.limit=3"],
        "dataset.options.limit=3: source tofu has no option limit",
    ),
}

GOOD = ("dataset=custom", "dataset.forget=forget.jsonl", "dataset.retain=retain.jsonl", "method=grad_diff")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("forget.jsonl").write_text(lines(FORGET))
    Path("retain.jsonl").write_text(lines(RETAIN))
    Path("folder.jsonl").mkdir()
    Path("link.jsonl").symlink_to("gone")
    Path("bad.parquet").write_bytes(b"PAR1 not really")
    Path("bad.safetensors").write_bytes(b"no tensors")
    Path("texts.json").write_text('["one", "two"]')
    Path("latin.txt").write_bytes("Là.".encode("latin-1"))
    Path("empty.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_cannot_be_used(folder: Path, case: str) -> None:
    content, words = FILES[case]
    Path("forget.jsonl").write_bytes(content.encode() if isinstance(content, str) else content)
    check_refusal(folder, Refused((*GOOD, "dry_run=true"), ("dataset.forget=forget.jsonl", words)))


@pytest.mark.parametrize("case", ARGUMENTS)
def test_options_that_name_what_cannot_be_used(folder: Path, case: str) -> None:
    arguments, words = ARGUMENTS[case]
    check_refusal(folder, Refused((*GOOD, *arguments, "dry_run=true"), (words,)))


def test_a_run_refuses_as_a_dry_run_does(folder: Path) -> None:
    content, words = FILES["a text for wrong answers"]
    Path("forget.jsonl").write_text(str(content))
    check_refusal(folder, Refused(GOOD, (words,)))
    assert not list(folder.glob("runs/*/model"))


def warnings(*arguments: str) -> list[str]:
    config = configure(*GOOD, *arguments)
    check(config)
    return inspect(config, make_plan(config))


def test_sets_that_overlap_are_warned_of(folder: Path) -> None:
    assert warnings() == []
    Path("retain.jsonl").write_text(lines([FORGET[0], {**FORGET[1], "answer": " Shelf 1.\n"}, *RETAIN]))
    Path("holdout.jsonl").write_text(
        lines([FORGET[2], RETAIN[0], RETAIN[1], {**ROWS[0], "answer": "Other."}])
    )
    reported = warnings("dataset.holdout=holdout.jsonl")
    assert [warning.split(" in the ")[0].split(" in ")[0] for warning in reported] == [
        "dataset.retain=retain.jsonl: 2 of the 5 examples of the forget set are",
        "dataset.holdout=holdout.jsonl: 1 of its 4 examples are",
        "dataset.holdout=holdout.jsonl: 2 of its 4 examples are",
    ]
    Path("forget.jsonl").write_text(lines([*FORGET, FORGET[4]]))
    assert warnings()[-1] == "dataset.forget=forget.jsonl: 1 of its 6 examples repeat an earlier one"


def test_refusals_of_plain_texts_are_warned_of(folder: Path) -> None:
    assert warnings("method=flat", "eval=none") == []
    Path("forget.jsonl").write_text(lines([*FORGET, {"text": "Shelf 9 has the ninth book."}]))
    (warning,) = warnings("method=flat", "eval=none")
    assert warning.startswith("method.alternatives: 1 of the texts have no question")
    assert warnings("method=npo", "eval=none") == []


def test_a_limit_leaves_what_a_target_is_trained_on(folder: Path) -> None:
    sets = load_sets(configure(*GOOD, "dataset.limit=2").dataset, {"forget", "retain", "full"})
    assert {name: len(rows) for name, rows in sets.items()} == {
        "forget": 2,
        "retain": 2,
        "full": len(FORGET) + len(RETAIN),
    }


def test_rows_that_a_run_does_not_read_are_not_looked_at(folder: Path) -> None:
    Path("retain.jsonl").write_text("broken")
    quiet = ("method=grad_ascent", "eval=none", "model.is_target=true")
    assert warnings(*quiet) == []
    with pytest.raises(UserError, match=r"dataset\.retain=retain\.jsonl, line 1: not JSON"):
        warnings("eval=none")


def test_what_the_hub_does_not_give_is_a_warning_of_a_dry_run_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    hub = (
        "dataset=lume",
        "dataset.path=nobody/nothing",
        "dataset.forget=null",
        "dataset.retain=null",
        "eval=none",
    )
    assert "its rows were not checked" in warnings(*hub, "dry_run=true")[0]
    with pytest.raises(UserError, match="could not get"):
        warnings(*hub)
