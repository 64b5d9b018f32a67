"""R-TOFU's files as sets: tasks, the part that is trained on, and its tokens; bad files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.eval.eval_fixtures import encoder
from tests.rtofu_miniature import rtofu, write
from unlearn.config import DatasetConfig
from unlearn.data import sources
from unlearn.data.example import Example
from unlearn.errors import UserError

TRACE = "The user asks about Odo 10. I recall gate 0.\n\nSo it is gate 0."
ANSWER = "Odo 10 keeps gate 0."
BREAK = "\n</think>\n\n"
CODE = encoder()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return rtofu(tmp_path / "tofu")


def config(folder: Path, **keys: Any) -> DatasetConfig:
    options = {key: keys.pop(key) for key in ("task", "train") if key in keys}
    return DatasetConfig(name="rtofu", source="rtofu", path=str(folder), options=options, **keys)


def test_sets(folder: Path) -> None:
    cfg = config(folder, task=2)
    assert sources.check(cfg) == []
    sets = sources.load_sets(cfg, sources.available(cfg))
    ids = {name: [e.id for e in rows] for name, rows in sets.items()}
    retain = [f"retain90/{n}" for n in range(4)]
    assert ids["forget"] == ids["forget_eval"] == ["forget01/2", "forget01/3"]
    assert ids["retain"] == [*retain, "forget01/0", "forget01/1"]
    assert ids["full"] == [*(f"forget01/{n}" for n in range(4)), *retain]
    assert ids["real_authors"] == ["real_authors_perturbed/0", "real_authors_perturbed/1"]
    assert sets["retain_eval"][0].answer == "retain 0 keeps gate 0."
    assert sets["retain"][0].answer.count(BREAK) == 1


def test_a_retain_model_is_trained_on_all_that_is_kept(folder: Path) -> None:
    """The other tasks of the forget file, too."""
    cfg = config(folder, task=2)
    built = cfg.model_copy(update={"full": sources.retain_model(cfg)})
    assert sources.load_sets(built, ["full"])["full"] == sources.load_sets(cfg, ["retain"])["retain"]
    assert "full" in sources.identity(built, ["full"])


@pytest.mark.parametrize(
    ("train", "opening", "answer"),
    [
        ("cot_answer", "", TRACE + BREAK + ANSWER),
        ("answer", TRACE + BREAK, ANSWER),
        ("cot", "", TRACE),
    ],
)
def test_the_part_of_an_answer_that_carries_the_loss(
    folder: Path, train: str, opening: str, answer: str
) -> None:
    sets = sources.load_sets(config(folder, train=train), ["forget", "forget_eval", "retain"])
    example = sets["forget"][0]
    assert (example.opening, example.answer) == (opening, answer)
    # Evaluation and the other sets have the whole.
    assert sets["forget_eval"][0].answer == TRACE + BREAK + ANSWER
    assert all(not e.opening and BREAK in e.answer for e in sets["retain"])
    (sequence,) = CODE.pairs([(example.question, example.answer)], [example.opening])
    ids = sequence.ids.tolist()
    before, after = (
        str(CODE.tokenizer.decode(part))
        for part in (ids[: sequence.answer_start], ids[sequence.answer_start : -1])
    )
    prompt = f"Question: {example.question}\nAnswer: "
    # The space before an answer may be part of the answer's first token.
    assert before.rstrip(" ") == (prompt + opening).rstrip(" ")
    assert after.strip() == answer
    assert (ids[-1], sequence.ended) == (CODE.end_id, True)


def test_an_opening_moves_the_loss_and_no_token() -> None:
    whole = Example("x", "one two three", "Who?")
    (plain,) = CODE.pairs([("Who?", whole.answer)])
    (opened,) = CODE.pairs([("Who?", " three")], ["one two"])
    assert opened.ids.tolist() == plain.ids.tolist()
    assert CODE.tokenizer.decode(opened.ids[opened.answer_start : -1]) == " three"
    (marked,) = CODE.important([("Who?", " three")], [[(0, 6)]], ["one two"])
    (all_marked,) = CODE.important([("Who?", whole.answer)], [[(7, 13)]])
    assert marked.any()
    assert marked.tolist() == all_marked[-opened.answer_length :].tolist()
    assert not all_marked[: -opened.answer_length].any()


def test_what_cannot_be(folder: Path, tmp_path: Path) -> None:
    assert "dataset.path is not set" in sources.check(config(folder).model_copy(update={"path": None}))[0]
    assert "dataset.path=" in sources.check(config(tmp_path / "nowhere"))[0]
    problems = sources.check(config(folder, forget="forget10"))
    assert any("dataset.forget=forget10" in p and "did you mean forget01" in p for p in problems)
    assert any("dataset.retain=retain10" in p for p in problems)
    assert "does not follow from dataset.forget=mine" in sources.check(config(folder, forget="mine"))[-1]
    held_out = config(folder).model_copy(update={"holdout": "more"})
    assert sources.check(held_out) == ["dataset.holdout=more: R-TOFU has no holdout set; leave it out"]
    assert "dataset.options.train='both'" in sources.check(config(folder, train="both"))[0]
    with pytest.raises(UserError, match=r"dataset.options.task=3 \(it has 1, 2\)"):
        sources.load_sets(config(folder, task=3), ["forget"])
    row = {"question": "Who?", "answer": "Odo.", "cot": "", "task_id": "1"}
    write(folder, "forget01", [row])
    with pytest.raises(UserError, match=r"row 0 .*'cot' is empty, which dataset.options.train=answer needs"):
        sources.load_sets(config(folder, train="answer"), ["forget"])
    del row["task_id"]
    write(folder, "forget01", [row])
    with pytest.raises(UserError, match="column 'task_id' is missing"):
        sources.load_sets(config(folder), ["retain"])


def test_the_fingerprint_follows_part_task_and_files(folder: Path) -> None:
    first = sources.identity(config(folder), ["forget", "retain"])
    assert first["files"].keys() == {"forget01", "retain90"}
    for keys in ({"train": "answer"}, {"task": 2}):
        assert sources.identity(config(folder, **keys), ["forget", "retain"]) != first
    write(folder, "retain90", [{"question": "Who?", "answer": "Odo.", "cot": "Well."}])
    assert sources.identity(config(folder), ["forget", "retain"]) != first
