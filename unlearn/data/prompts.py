"""Render the prompt of a question with a plain template or the tokenizer's chat template."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any

import jinja2
import transformers

from unlearn.config import PromptConfig
from unlearn.data.templates import EXAMPLE, filled
from unlearn.errors import UserError, did_you_mean, quoted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DATE: str = PromptConfig.model_fields["date"].default
_CLOCK = "strftime_now"
# The directives of strftime that do not depend on the machine.
_DIRECTIVES = (*"aAwdbBmyYHIpMSfjUWcxXGuVeDFTRhC", "-d", "-m", "-y", "-H", "-I", "-M", "-S", "-j")
_OTHERS = "Plain templates are an alternative: " + EXAMPLE


class DataError(UserError):
    """The data cannot be used as configured; the message names the example and the fix."""


class Conversation(str):
    """A question after earlier turns: a text for each turn, the user's and the model's in alternation.

    The last turn is the question. As a text it is all turns, with empty lines between them.
    """

    turns: tuple[str, ...]

    def __new__(cls, *turns: str) -> Conversation:
        made = super().__new__(cls, "\n\n".join(turns))
        made.turns = turns
        return made

    def __reduce__(self) -> tuple[type[Conversation], tuple[str, ...]]:
        return Conversation, self.turns


@dataclass(frozen=True)
class PromptFormat:
    """The format of prompts: the tokenizer's chat template, or a plain template.

    `template` is a plain one such as `"Question: {question}\\nAnswer: "`; None means the chat template,
    rendered with the system message and further `variables` (`date_string` of Llama 3), with `date` as
    today's date. `end` is the text of the token that ends an answer; None means the tokenizer's
    end-of-sequence token.
    """

    template: str | None = None
    system: str | None = None
    end: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    date: str = DATE

    def prompt(self, tokenizer: PreTrainedTokenizerBase, question: str) -> str:
        """Render the text before the answer's first character; a `Conversation` with its turns.

        A plain template is filled for each of the user's turns; the model's follow, with an empty line after.

        Raises:
            DataError: there is no chat template, or it cannot be rendered.
        """
        turns = question.turns if isinstance(question, Conversation) else (question,)
        if self.template is not None:
            asked = [filled(self.template, question=text) for text in turns[::2]]
            earlier = zip(asked, turns[1::2], strict=False)
            return "".join(f"{prompt}{answer}\n\n" for prompt, answer in earlier) + asked[-1]
        messages = [{"role": "system", "content": self.system}] if self.system is not None else []
        roles = ("user", "assistant")
        messages += [{"role": roles[number % 2], "content": text} for number, text in enumerate(turns)]
        try:
            return self.render(tokenizer, messages)
        except UserError:
            raise
        except Exception as error:  # a template is code and may raise anything
            raise DataError(self._explained(tokenizer, question, error)) from error

    def render(self, tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], **how: Any) -> str:
        """Render the chat template for these messages; `how` goes to `apply_chat_template`.

        Raises:
            DataError: the tokenizer has no chat template.
            Exception: any error of the template.
        """
        if tokenizer.chat_template is None:
            raise DataError(
                "this tokenizer has no chat template: set model.prompt.template to a plain one, such as "
                f"{EXAMPLE}"
            )
        template = tokenizer.get_chat_template()
        if _CLOCK in template:
            template = _with_clock(self.date) + template
        text = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False,
            **({"add_generation_prompt": True} | how), **self.variables,
        )  # fmt: skip
        assert isinstance(text, str)
        return text

    def identity(self) -> dict[str, Any]:
        """Return the settings that determine prompts, as JSON; the date only where it is not the default."""
        return {key: value for key, value in asdict(self).items() if key != "date" or value != DATE}

    def check(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """Return warnings about the prompts of this format with a tokenizer.

        Raises:
            DataError: prompts cannot be rendered, or do not depend on the question alone.
        """
        questions = ("What is the name?", "Where does the river end?")
        first, second = (self.prompt(tokenizer, question) for question in questions)
        if self.template is not None:
            return self._unused()
        if first == second:
            raise DataError(
                "the chat template of this tokenizer leaves the question out: all prompts would be "
                f"{quoted(first)}; set a plain model.prompt.template, such as {EXAMPLE}"
            )
        if any(self.prompt(tokenizer, questions[0]) != first for _ in range(3)):
            raise DataError(
                "the chat template of this tokenizer gives another prompt each time, so numbers could not be "
                f"repeated; set a plain model.prompt.template, such as {EXAMPLE}"
            )
        return self._ignored(tokenizer, first)

    def after_answer(self, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """Return the special token that the chat template writes first after an answer, if there is one."""
        if self.template is not None:
            return None
        answer = "It is Ada."
        turns = [{"role": "user", "content": "What is the name?"}, {"role": "assistant", "content": answer}]
        try:
            _, found, rest = self.render(tokenizer, turns, add_generation_prompt=False).rpartition(answer)
        except Exception:  # it may be made for prompts alone
            return None
        added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
        special = {*tokenizer.all_special_tokens, *added}
        places = {token: rest.find(token) for token in special if found and token in rest}
        return min(places, key=lambda token: (places[token], -len(token)), default=None)

    def _unused(self) -> list[str]:
        """Return warnings about settings that a plain template does not use."""
        settings = {"system": self.system, "variables": self.variables or None}
        warnings = [
            f"model.prompt.{key} is not used: model.prompt.template is a plain template, without a chat"
            for key, value in settings.items()
            if value is not None
        ]
        if "{answer}" in (self.template or ""):
            warnings.append(
                "model.prompt.template: {answer} is not replaced; answers follow the prompt anyway"
            )
        return warnings

    def _ignored(self, tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[str]:
        """Return warnings about settings that the chat template does not use."""
        text = tokenizer.get_chat_template()
        warnings = []
        if self.system is not None and self.system.strip() not in prompt:
            warnings.append(
                f"model.prompt.system={quoted(self.system)} is not used: the chat template leaves system "
                "messages out"
            )
        words = set(re.findall(r"[^\W\d]\w*", text))
        warnings += [
            f"model.prompt.variables.{name} is not used: the chat template has no such variable"
            f"{near if (near := did_you_mean(name, words)).startswith(' (did') else ''}"
            for name in self.variables
            if name not in words
        ]
        if self.date != DATE and _CLOCK not in text:
            warnings.append(f"model.prompt.date={self.date} is not used: the chat template has no date")
        return warnings

    def _explained(self, tokenizer: PreTrainedTokenizerBase, question: str, error: Exception) -> str:
        reason = " ".join(str(error).split()) or type(error).__name__
        if self.system is not None and self._works_without_system(tokenizer, question):
            return (
                f"model.prompt.system={quoted(self.system)}: the chat template of this tokenizer takes no "
                f"system message ({reason}); set model.prompt.system=null, or a plain model.prompt.template "
                "that contains the text"
            )
        if isinstance(error, jinja2.TemplateSyntaxError):
            return f"the chat template of this tokenizer is broken ({reason}): correct it. {_OTHERS}"
        if isinstance(error, jinja2.UndefinedError):
            return (
                f"the chat template of this tokenizer uses a variable that is not set ({reason}): set it "
                f"with 'model.prompt.variables={{name: value}}'. {_OTHERS}"
            )
        return f"the chat template of this tokenizer cannot be rendered ({reason}). {_OTHERS}"

    def _works_without_system(self, tokenizer: PreTrainedTokenizerBase, question: str) -> bool:
        try:
            self.render(tokenizer, [{"role": "user", "content": question}])
        except Exception:  # the system message is not the cause
            return False
        return True


def check_variables(names: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the names of `model.prompt.variables`."""
    call = inspect.signature(transformers.PreTrainedTokenizerBase.apply_chat_template).parameters
    reserved = {*call, "messages", _CLOCK} - {"tools", "documents", "kwargs"}
    return [
        f"model.prompt.variables.{name}: is set by the program itself"
        + ("; model.prompt.date sets the day that a template reads" if name == _CLOCK else "")
        for name in names
        if name in reserved
    ]


@cache
def _with_clock(date: str) -> str:
    """Return a prefix for a chat template that fixes its clock to midnight of `date`.

    It is a macro, as templates take plain data only; it replaces transformers' own function.
    """
    day = datetime.fromisoformat(date)
    known = "".join(f'|replace("%{d}", "{day.strftime(f"%{d}")}")' for d in _DIRECTIVES)
    return f"{{% macro {_CLOCK}(format) %}}{{{{ format{known} }}}}{{% endmacro %}}\n"
