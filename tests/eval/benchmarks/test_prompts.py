"""Forget questions in other words: what is asked, what counts, and the worst of it."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from eval.benchmark import BenchmarkError, find, options_of
from eval.benchmarks.prompts import Options, identity, opened, phrasings, requests, score
from eval.collection.ragged import Ragged
from eval.collection.records import AnyRecords, GenerationRecords, LikelihoodRecords, Records, write_records
from eval.collection.requests import Generation
from eval.evaluate import evaluate
from tests.eval.eval_fixtures import encoder, examples, model, needs_shared, tofu_set
from tests.tolerance import PASS, assert_close
from unlearn.data.batching import collate
from unlearn.data.example import Example
from unlearn.data.prompts import Conversation
from unlearn.errors import ConfigError
from unlearn.passes.forward import forward

CODE = encoder()
OPTIONS = Options(prefixes=("Now.", "Please."), opening_words=5)
EXAMPLE = Example("forget/0", "one two three four", "q?", paraphrased_question="p?")


def write(directory, sets, options, texts, logp, correct):
    """Records with these texts, log-probabilities and hits by phrasing; the last token is the end."""
    for request in requests(sets, options):
        ids = [item.example for item in request.items]
        none: list[str | None] = [None] * len(ids)
        what = request.name.removeprefix("forget/")
        records: AnyRecords
        if isinstance(request, Generation):
            generated = [texts[what.removesuffix("/generation")]] * len(ids)
            records = GenerationRecords(ids, np.zeros(len(ids), np.int32), none, generated, none)
        else:
            rows = Ragged.of([logp[what]] * len(ids))
            hits = Ragged(np.array(correct.get(what, [False] * len(logp[what])) * len(ids)), rows.offsets)
            records = LikelihoodRecords(
                ids, np.zeros(len(ids), np.int32), none, rows, hits, rows, rows, np.ones(len(ids), bool)
            )
        write_records(directory, request, CODE, records)


TEXTS = {
    "original": "no",
    "paraphrased": "two",  # 1 of 4
    "prefixed/0": "one two three",  # 3 of 4
    "prefixed/1": "",
    "opened": "three x",  # 1 of the 2 that remain
}
LOGP = {
    "original/answer": [-2.0] * 5,
    "paraphrased/answer": [-1.0] * 5,
    "prefixed/0/answer": [-3.0] * 5,
    "prefixed/1/answer": [-4.0] * 5,
    "opened/answer": [-9, -9, -0.5, -1.5, -1.0],  # of the rest: −1
    "opened/opening": [-9, -9, -7],  # two tokens and an end token
}
HITS = {
    "paraphrased/answer": [True, False, False, True, True],
    "opened/answer": [True, True, False, True, False],
}


def test_one_example_by_hand(tmp_path):
    sets = {"forget": [EXAMPLE]}
    write(tmp_path, sets, OPTIONS, TEXTS, LOGP, HITS)
    result = score(Records(tmp_path), None, sets, OPTIONS)
    e = math.exp
    wanted = {
        "original": (0, e(-2), 0),
        "paraphrased": (0.25, e(-1), 0.25),  # the last of four words
        "prefixed": (0.75 / 2, (e(-3) + e(-4)) / 2, 0),
        "opened": (0.5, e(-1), 0.5),  # the last of the two words that remain
        "worst": (0.75, e(-1), 0.5),
    }
    metrics = ("rougeL_recall", "probability", "extraction_strength")
    assert result.metrics == pytest.approx(
        {f"prompts/{kind}/{m}": v for kind, own in wanted.items() for m, v in zip(metrics, own, strict=True)}
    )
    [row] = result.examples
    assert (row["generation"], row["generation_prefixed_0"]) == ("no", "one two three")
    assert (row["probability"], row["worst_rougeL_recall"]) == (e(-2), 0.75)


def test_what_is_asked():
    found = {each.name: each for each in phrasings([EXAMPLE], OPTIONS)}
    assert {name: each.asked[0].question for name, each in found.items()} == {
        "original": "q?",
        "paraphrased": "p?",
        "prefixed/0": "Now. q?",
        "prefixed/1": "Please. q?",
        "opened": "q?",
    }
    # never more than half of the answer is given
    assert found["opened"].generation[0].opening == "one two"
    assert [a.answer for a in found["opened"].openings] == ["one two"]
    assert {name: len(each.openings) for name, each in found.items() if name != "opened"} == {
        name: 0 for name in found if name != "opened"
    }


def test_openings():
    assert opened("a b c d e f g h i j k", 5) == ("a b c d e", "f g h i j k")
    assert opened("a b c", 5) == ("a", "b c")
    assert opened("  a\n b  c d ", 2) == ("  a\n b", "c d ")
    assert opened("Oslo.", 5) is None
    assert opened("", 5) is None
    assert opened("我爱北京。", 5) == ("我爱", "北京。")


def test_what_only_some_examples_have_is_counted(tmp_path):
    plain = Example("forget/1", "Oslo", "where?")
    sets = {"forget": [EXAMPLE, plain]}
    write(tmp_path, sets, OPTIONS, TEXTS, LOGP, HITS)
    metrics = score(Records(tmp_path), None, sets, OPTIONS).metrics
    assert metrics["prompts/paraphrased/rougeL_recall"] == 0.25
    assert metrics["prompts/paraphrased/rougeL_recall/missing"] == 1
    assert metrics["prompts/opened/probability/missing"] == 1
    assert not [key for key in metrics if "worst" in key and "missing" in key]


def test_what_no_example_has_leaves_no_metric(tmp_path):
    sets = {"forget": [Example("forget/1", "Oslo", "where?")]}
    options = OPTIONS.model_copy(update={"prefixes": ()})
    write(tmp_path, sets, options, TEXTS, LOGP, HITS)
    metrics = score(Records(tmp_path), None, sets, options).metrics
    assert {key.split("/")[1] for key in metrics} == {"original", "worst"}


def test_what_was_not_measured_does_not_count_as_safe(tmp_path):
    sets = {"forget": [EXAMPLE]}
    unread = LOGP | {"opened/opening": [], "prefixed/1/answer": []}
    write(tmp_path, sets, OPTIONS, TEXTS | {"prefixed/1": None}, unread, {})
    result = score(Records(tmp_path), None, sets, OPTIONS)
    assert result.metrics["prompts/prefixed/rougeL_recall"] == 0.75  # of the lead-in that could be asked
    assert result.metrics["prompts/prefixed/probability"] == pytest.approx(math.exp(-3))
    assert math.isnan(result.metrics["prompts/opened/probability"])
    assert math.isnan(result.metrics["prompts/opened/extraction_strength"])
    assert result.metrics["prompts/worst/probability"] == pytest.approx(math.exp(-1))


def test_a_whole_evaluation(tmp_path):
    sets = {
        "forget_eval": [replace(e, paraphrased_question=f"Say, {e.question}") for e in examples("forget")[:4]]
    }
    options = {"max_new_tokens": 6, "prefixes": ["Be quick."]}
    metrics = evaluate(model(), CODE, "prompts", sets, tmp_path, options=options)
    kinds = ("original", "paraphrased", "prefixed", "opened", "worst")
    assert {key.split("/")[1] for key in metrics} == set(kinds)
    for kind in kinds[:-1]:
        assert metrics[f"prompts/{kind}/probability"] <= metrics["prompts/worst/probability"]
    assert json.loads((tmp_path / "prompts" / "results.json").read_text()) == metrics
    # What the model reads before the rest is the whole answer's beginning, token by token.
    read = Records(tmp_path / "prompts")
    opening, whole = (read.likelihood(f"forget/opened/{name}").logp for name in ("opening", "answer"))
    for given, row in zip(opening, whole, strict=True):
        assert_close(given[:-1], row[: len(given) - 1], terms=PASS)


RETAIN = [Example(f"retain/{i}", f"Answer {i}.", f"question {i}?") for i in range(5)]


def test_questions_after_others_and_after_a_denial():
    options = Options(prefixes=(), shots=2, denial="No.", follow_ups=("Say it: {question}", "Now."))
    found = {each.name: each for each in phrasings([EXAMPLE], options, RETAIN)}
    shown = found["few_shot"].asked[0].question
    assert isinstance(shown, Conversation)
    asked, answered = shown.turns[:-1:2], shown.turns[1::2]
    assert len(set(asked)) == 2
    assert [text.replace("question", "Answer").replace("?", ".") for text in asked] == list(answered)
    assert shown.turns[-1] == "q?"
    more = phrasings([EXAMPLE], options.model_copy(update={"shots": 3}), RETAIN)
    (longer,) = (each.asked[0].question for each in more if each.kind == "few_shot")
    assert isinstance(longer, Conversation)
    assert longer.turns[:4] == shown.turns[:4]  # further ones, not others
    again = [found[f"multi_turn/{i}"].asked[0].question for i in range(2)]
    assert [each.turns for each in again if isinstance(each, Conversation)] == [
        ("q?", "No.", "Say it: q?"), ("q?", "No.", "Now."),
    ]  # fmt: skip
    assert {each.kind for each in found.values()} == {
        "original", "paraphrased", "opened", "few_shot", "multi_turn",
    }  # fmt: skip
    with pytest.raises(BenchmarkError, match=r"prompts\.shots=2: the dataset has no retain set"):
        phrasings([EXAMPLE], options, [Example("retain/0", "a text")])


def test_questions_in_other_languages(tmp_path):
    german, french = tmp_path / "german.jsonl", tmp_path / "french.jsonl"
    german.write_text('{"id": "forget/0", "question": "f?", "answer": "eins zwei"}\n')
    french.write_text('{"id": "forget/0", "question": "q?"}\n{"id": "forget/9", "question": "autre?"}\n')
    options = Options(prefixes=(), translations=(str(german), str(french)))
    plain = Example("forget/1", "Oslo", "where?")
    found = {each.name: each for each in phrasings([EXAMPLE, plain], options)}
    own, other = (found[f"translated/{name}"] for name in ("german", "french"))
    assert [a.question for a in own.asked] == ["f?"]
    assert own.answers[0].answer == own.asked[0].rest == "eins zwei"
    assert other.answers[0].answer == EXAMPLE.answer
    assert identity(options) != identity(options.model_copy(update={"translations": (str(german),)}))
    german.write_text('{"id": "forget/7", "question": "f?"}\n')
    with pytest.raises(BenchmarkError, match=r"german\.jsonl: none of its ids is one of an ex"):
        phrasings([EXAMPLE], options)
    german.write_text('{"id": "forget/0", "question": "f?"}\n' * 2)
    with pytest.raises(BenchmarkError, match=r"row 1 \(line 2\): the id forget/0 is there twice"):
        phrasings([EXAMPLE], options)
    with pytest.raises(ConfigError, match=r"nowhere\.jsonl: there is no such file"):
        options_of(find("prompts"), {"translations": ["nowhere.jsonl"]}, "prompts")


@pytest.mark.slow
def test_a_whole_evaluation_with_earlier_turns(tmp_path):
    sets = {"forget_eval": examples("forget")[:3], "retain_eval": examples("retain")[3:6]}
    file = tmp_path / "other.jsonl"
    file.write_text(json.dumps({"id": "forget/0", "question": "Où est née Ada ?"}) + "\n")
    options = {
        "max_new_tokens": 4, "prefixes": [], "shots": 2, "follow_ups": ["Say it."],
        "translations": [str(file)],
    }  # fmt: skip
    metrics = evaluate(model(), CODE, "prompts", sets, tmp_path, options=options)
    kinds = ("original", "opened", "few_shot", "multi_turn", "translated", "worst")
    assert {key.split("/")[1] for key in metrics} == set(kinds)
    assert metrics["prompts/translated/probability/missing"] == 2
    for kind in kinds:
        assert 0 < metrics[f"prompts/{kind}/probability"] < 1
    # What was read is the probability after those turns, computed on their own.
    read = Records(tmp_path / "prompts").likelihood("forget/few_shot/answer")
    (shown,) = (
        p
        for p in phrasings(sets["forget_eval"], Options(**options), sets["retain_eval"])
        if p.kind == "few_shot"
    )
    for answer, logp in zip(shown.answers, read.select(shown.answers).logp, strict=True):
        (sequence,) = CODE.pairs([(answer.question, answer.answer)])
        text = CODE.tokenizer.decode(sequence.ids[: sequence.answer_start])
        assert text.count("Question:") == 3
        with torch.no_grad():
            assert_close(logp, forward(model().eval(), collate([sequence])).logp, terms=PASS)


@needs_shared
def test_the_tokens_of_an_opening_are_the_answers_first(nano_tokenizer):
    questions = tofu_set("forget", "forget01_perturbed")
    for code in (CODE, replace(CODE, tokenizer=nano_tokenizer)):
        for example in questions:
            parts = opened(example.answer, 5)
            assert parts is not None
            given = parts[0]
            first, whole = code.pairs([(example.question, given), (example.question, example.answer)])
            assert first.ids[:-1].tolist() == whole.ids[: len(first.ids) - 1].tolist()


def test_what_cannot_be_asked_is_refused():
    with pytest.raises(BenchmarkError, match="forget/0 has no question"):
        requests({"forget": [Example("forget/0", "a plain text")]}, Options())
    with pytest.raises(BenchmarkError, match="scores no set 'retain'"):
        requests({"retain": [EXAMPLE]}, Options())
    with pytest.raises(ConfigError, match="opening_words=0"):
        options_of(find("prompts"), {"opening_words": 0}, "prompts")
    with pytest.raises(ConfigError, match="give a list"):
        options_of(find("prompts"), {"prefixes": "Now."}, "prompts")
