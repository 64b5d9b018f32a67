"""Check the examples of a run, and their alternative answers and annotations, before training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from unlearn.config import DatasetConfig, RunConfig
from unlearn.data.alternatives import alternatives
from unlearn.data.annotations import load_annotations, read_annotations
from unlearn.data.example import Example
from unlearn.data.sources import available
from unlearn.errors import ConfigError, UserError
from unlearn.terms import bind
from unlearn.training.step_data import kinds, own_view

Sets: TypeAlias = Mapping[str, Sequence[Example]]

_UNSEEN = (
    ("forget", "holdout"),
    ("retain", "holdout"),
    ("privleak_forget", "privleak_holdout"),
    ("member", "nonmember"),
)


def check_companions(config: RunConfig, sets: Sets) -> None:
    """Check that alternative answers and annotations match the training examples.

    Raises:
        UserError: an example has no alternative answer, or an annotation is missing or wrong.
    """
    terms = bind(config.method)
    for name, answers in kinds((term, term.needs) for term in terms).items():
        if "alternatives" in answers:
            _check_alternatives(config, sets.get(name, ()), sets.get("retain", ()))
    annotated = {
        own_view(term).group
        for term in terms
        if any(each.quantity == "important" for each in term.statistics)
    }
    for name in annotated:
        examples = sets.get(name, ())
        if config.dataset.annotations is None:
            continue
        if all(example.question is not None for example in examples):
            load_annotations(config.dataset.annotations, examples)
        else:  # the tokenizer cuts long texts, and the entries belong to the pieces
            read_annotations(config.dataset.annotations)


def texts_without_questions(config: RunConfig, sets: Sets) -> list[str]:
    """Return a warning where alternative answers belong to plain texts, which ask nothing."""
    terms = bind(config.method)
    answered = [
        n for n, kind in kinds((term, term.needs) for term in terms).items() if "alternatives" in kind
    ]
    plain = sum(example.question is None for name in answered for example in sets.get(name, ()))
    if not plain:
        return []
    return [
        f"method.alternatives: {plain} of the texts have no question, so that their alternative answer is "
        "learnt as a text by itself, which says nothing of what is forgotten; choose data with questions, or "
        "a method without alternatives"
    ]


def overlaps(cfg: DatasetConfig, sets: Sets) -> list[str]:
    """Compare the sets by question and answer, ignoring white space at the ends.

    Returns:
        Warnings about examples that the forget set shares with the retain set or the holdout, and repeats.

    Raises:
        ConfigError: the retain set is the forget set.
    """
    forget, retain = _content(sets, "forget"), _content(sets, "retain")
    if forget and forget == retain:
        raise ConfigError(
            [
                f"{_key(cfg, 'retain')}: the retain set is the forget set (the same {len(forget)} examples), "
                "so the same data would be forgotten and kept; set dataset.retain to other data"
            ]
        )
    warnings = []
    if both := len(forget & retain):
        warnings.append(
            f"{_key(cfg, 'retain')}: {both} of the {len(forget)} examples of the forget set are in the "
            "retain set too, so they are both forgotten and kept"
        )
    for seen, unseen in _UNSEEN:
        holdout = _content(sets, unseen)
        if both := len(_content(sets, seen) & holdout):
            warnings.append(
                f"{_key(cfg, unseen)}: {both} of its {len(holdout)} examples are in the set {seen} too, "
                "but membership attacks treat all of them as unseen"
            )
    for name in ("forget", "retain"):
        if repeated := len(sets.get(name, ())) - len(_content({name: sets.get(name, ())}, name)):
            warnings.append(
                f"{_key(cfg, name)}: {repeated} of its {len(sets[name])} examples repeat an earlier one"
            )
    return warnings


def check_retain_model(cfg: DatasetConfig, rows: Sequence[Example], sets: Sets) -> None:
    """Check what a retain model is trained on against the sets of the run that compares with it.

    Raises:
        ConfigError: the forget set is all among it.
    """
    forget = _content(sets, "forget")
    if forget and forget <= _content({"full": rows}, "full"):
        raise ConfigError(
            [
                f"dataset.source={cfg.source}: a retain model would be trained on all of the forget set; "
                f"`load` of the source must give as full what dataset.full names, here {cfg.full}"
            ]
        )


def _check_alternatives(config: RunConfig, examples: Sequence[Example], pool: Sequence[Example]) -> None:
    cfg = config.method.alternatives
    if cfg.source != "sampled":
        alternatives(cfg, examples, pool=pool, seed=config.seed)
    elif any(example.question is None for example in examples):
        raise UserError("method.alternatives.source=sampled: plain texts have no question to answer")


def _content(sets: Sets, name: str) -> set[tuple[str, str]]:
    """Return the questions and answers of a set, for training and for evaluation."""
    examples = [*sets.get(name, ()), *sets.get(f"{name}_eval", ())]
    return {((example.question or "").strip(), example.answer.strip()) for example in examples}


def _key(cfg: DatasetConfig, name: str) -> str:
    split = available(cfg).get(name)
    named = name in ("forget", "retain", "holdout")
    return f"dataset.{name}={split}" if named else f"dataset.path={cfg.path}, {split}"
