"""Prompts: plain templates as they are typed, chat templates that refuse, forget or look at the clock."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from unlearn.config import AlternativesConfig, PromptConfig
from unlearn.data.prompts import Conversation, DataError, PromptFormat, check_variables
from unlearn.data.templates import filled, lacking

ALL = "{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}"
TODAY = "{% if strftime_now is defined %}{{ strftime_now('%-d %B %Y, %A, %Y-%m-%d %H:%M') }}{% endif %}"


@pytest.fixture
def chat(nano_tokenizer: PreTrainedTokenizerFast) -> Any:
    """A tokenizer with the given chat template."""
    before = nano_tokenizer.chat_template

    def made(template: Any) -> PreTrainedTokenizerFast:
        nano_tokenizer.chat_template = template
        return nano_tokenizer

    yield made
    nano_tokenizer.chat_template = before


def test_escapes_are_what_they_stand_for() -> None:
    typed = PromptConfig(template=r"Q: {question}\n\tA: ", system=r"a\nb", end=r"\n")
    assert (typed.template, typed.system, typed.end) == ("Q: {question}\n\tA: ", "a\nb", "\n")
    assert PromptConfig.model_validate(typed.model_dump()) == typed
    assert AlternativesConfig(prompt=r"{question}\n").prompt == "{question}\n"


def test_only_named_braces_are_filled_and_once() -> None:
    assert filled("{question} {a} {{}}", question="{answer}", answer="x") == "{answer} {a} {{}}"


@pytest.mark.parametrize(
    ("template", "near"),
    [
        ("{Question}:", "{Question}"),
        ("{ question }", "{question}"),
        ("{quesiton}?", "{quesiton}"),
        ("Q:", None),
    ],
)
def test_a_template_that_asks_nothing(template: str, near: str | None) -> None:
    message = lacking(template, "question") or ""
    assert message.startswith("has no {question}")
    assert ("did you mean" in message) == (near is not None)
    assert near is None or f"instead of {near}" in message
    assert lacking("{question} and {question}", "question") is None


def test_what_closes_a_turn(chat: Any) -> None:
    """Gemma's and Phi's templates close a turn with another token than the tokenizer's end of sequence."""
    plain, closed = chat(ALL), PromptFormat()
    assert closed.after_answer(plain) is None
    end, pad = plain.eos_token, plain.pad_token
    assert end != pad
    assert closed.after_answer(chat(ALL + "{{ eos_token }}\n")) == end
    assert closed.after_answer(chat(ALL + f"{pad}{{{{ eos_token }}}}")) == pad
    assert closed.after_answer(chat(f"{pad}{{{{ messages[0].content }}}}{end}")) is None  # the prompt alone
    assert PromptFormat(template="{question}").after_answer(chat(ALL + end)) is None


def test_the_clock_stands_still(chat: Any) -> None:
    tokenizer = chat(TODAY + ALL)
    assert PromptFormat().prompt(tokenizer, "Who?") == "26 July 2024, Friday, 2024-07-26 00:00user: Who?;"
    set_ = PromptFormat(date=PromptConfig(date="5 Jan 2023").date)
    assert set_.prompt(tokenizer, "Who?").startswith("5 January 2023, Thursday, 2023-01-05")
    assert "date" not in PromptFormat().identity()
    assert set_.identity()["date"] == "2023-01-05"


def test_a_template_without_a_clock_is_rendered_as_it_is(chat: Any) -> None:
    assert PromptFormat(date="2020-01-01").prompt(chat("\n{{ 1 }} " + ALL), "Who?") == "\n1 user: Who?;"
    assert PromptFormat().prompt(chat("\n  " + TODAY), "Who?").startswith("\n26 July")


@pytest.mark.parametrize(
    ("template", "form", "message"),
    [
        ("{{ raise_exception('not now') }}", PromptFormat(), r"cannot be rendered \(not now\)"),
        (
            "{{ tools_in.first }}",
            PromptFormat(),
            r"uses a variable that is not set.*model\.prompt\.variables",
        ),
        ("{% for", PromptFormat(), "is broken"),
        ({"tool_use": ALL}, PromptFormat(), "cannot be rendered"),
        ("{{ messages[0].content + 1 }}", PromptFormat(), "cannot be rendered"),
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + ALL,
            PromptFormat(system="Hi"),
            r"model\.prompt\.system='Hi'.*\(no\).*system=null",
        ),
        ("Hello", PromptFormat(), "leaves the question out"),
        ("{{ messages[0].content }}", PromptFormat(system="Hi"), "leaves the question out"),
        (ALL + "{{ range(100000) | random }}", PromptFormat(), "another prompt each time"),
    ],
)
def test_templates_that_make_no_prompts(template: Any, form: PromptFormat, message: str, chat: Any) -> None:
    with pytest.raises(DataError, match=message):
        form.check(chat(template))


def test_what_is_not_used_is_reported(chat: Any) -> None:
    last = chat("{{ messages[-1].content }}{{ day }}")
    warnings = PromptFormat(system="Hi", variables={"day": 1, "dya": 2}, date="2020-01-01").check(last)
    assert [line.split(" is not used")[0] for line in warnings] == [
        "model.prompt.system='Hi'",
        "model.prompt.variables.dya",
        "model.prompt.date=2020-01-01",
    ]
    assert "did you mean day" in warnings[1]
    plain = PromptFormat("{question}{answer}", system="Hi").check(last)
    assert len(plain) == 2
    assert PromptFormat(system="Hi").check(chat(ALL)) == []


def test_names_that_the_program_needs() -> None:
    warnings = check_variables({"tokenize": 1, "strftime_now": 2, "date_string": 3, "tools": []})
    assert [line.split(":")[0] for line in warnings] == [
        "model.prompt.variables.tokenize",
        "model.prompt.variables.strftime_now",
    ]


def test_earlier_turns_are_rendered(nano_tokenizer):
    asked = Conversation("Who?", "Ann.", "Where?")
    assert PromptFormat(system="Hi").prompt(nano_tokenizer, asked) == (
        "<|system|>Hi<|end|><|user|>Who?<|end|><|assistant|>Ann.<|end|><|user|>Where?<|end|><|assistant|>"
    )
    plain = PromptFormat(template="Q: {question}\nA: ")
    assert plain.prompt(nano_tokenizer, asked) == "Q: Who?\nA: Ann.\n\nQ: Where?\nA: "
    assert plain.prompt(nano_tokenizer, Conversation("Who?")) == plain.prompt(nano_tokenizer, "Who?")
    assert asked == "Who?\n\nAnn.\n\nWhere?"
    assert copy.deepcopy(asked).turns == asked.turns
