"""Prompts that the model refuses, from which a direction is measured."""

from __future__ import annotations

from collections.abc import Iterable

from unlearn.data.readers import content_hash
from unlearn.data.text_lists import read_texts
from unlearn.errors import UserError
from unlearn.paths import user_path
from unlearn.terms import Term, needs_direction


def read(term: Term) -> list[str]:
    """Return the distinct prompts of the file that a term names, sorted.

    Raises:
        UserError: it names none, or the file cannot be read or has no prompts.
    """
    key = f"method.{term.name}.refused_prompts"
    if term.refused_prompts is None:
        raise UserError(
            f"{key} is not set: {term.objective.function.__name__} moves towards prompts that the model "
            "refuses; set it to a file of such prompts, one per line"
        )
    return read_texts(term.refused_prompts, f"{key}={term.refused_prompts}", "prompt")


def check(terms: Iterable[Term]) -> list[str]:
    """Return what is wrong with the files of terms that need such prompts."""
    problems = []
    for term in filter(needs_direction, terms):
        try:
            read(term)
        except UserError as error:
            problems.append(str(error))
    return problems


def identity(terms: Iterable[Term]) -> dict[str, str]:
    """Return the hashes of the files of terms that need such prompts."""
    return {
        f"{term.name}.refused_prompts": content_hash(user_path(term.refused_prompts))
        for term in terms
        if term.refused_prompts is not None
    }
