"""The embedded authors: the promises of the sets, and the content itself held fast by a hash."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import astuple
from hashlib import sha256
from pathlib import Path

import pytest

from tests.paths import ROOT
from unlearn.data.example import Example
from unlearn.data.synthetic_authors import (
    MAX_AUTHORS,
    MAX_QUESTIONS,
    author_sets,
    generate,
    real_authors,
    world_facts,
)

# A change of this value changes what every model trained on the embedded data has learned.
GOLDEN = "fd4c257727f9a5bc777dae22effc83ded830b90e1680162b9f7bb3fab517194a"


def content_hash() -> str:
    sets = author_sets(authors=20, questions=10, forget=10, seed=0)
    every = [example for examples in sets.values() for example in examples]
    assert all((e.template, e.group, e.truncated, e.opening) == (None, None, False, "") for e in every)
    content = {name: [astuple(example)[:6] for example in examples] for name, examples in sets.items()}
    return sha256(json.dumps(content, ensure_ascii=True).encode()).hexdigest()


def ids(examples: list[Example]) -> list[str]:
    return [example.id for example in examples]


def flat(people: list[list[Example]]) -> list[Example]:
    return [example for person in people for example in person]


def asked_values(example: Example) -> list[str]:
    """The true value, then the wrong ones: what is left without the words all six sentences share."""
    assert example.paraphrased_answer is not None
    six = [text.split() for text in (example.paraphrased_answer, *example.perturbed_answers)]
    head = shared(six)
    tail = shared([words[head:][::-1] for words in six])
    return [" ".join(words[head : len(words) - tail]).strip('."') for words in six]


def shared(sentences: list[list[str]]) -> int:
    same = [len(set(words)) == 1 for words in zip(*sentences, strict=False)]
    return [*same, False].index(False)


def wording(example: Example, name: str) -> str:
    bare = example.answer.replace(name, "NAME")
    return re.sub(re.escape(asked_values(example)[0]), "VALUE", bare, flags=re.IGNORECASE)


@pytest.fixture(scope="module")
def sets() -> dict[str, list[Example]]:
    return author_sets(authors=20, questions=10, forget=10, seed=0)


@pytest.fixture(scope="module")
def everyone() -> list[list[Example]]:
    return generate(MAX_AUTHORS)


def test_content_is_the_golden_one():
    assert content_hash() == GOLDEN


def test_content_does_not_depend_on_the_hash_seed_of_the_process():
    code = f"import sys; from {content_hash.__module__} import content_hash; sys.stdout.write(content_hash())"
    paths = os.pathsep.join([str(Path(__file__).parent), str(ROOT)])
    for hash_seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": paths}
        run = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
        assert run.stdout == GOLDEN


def test_another_seed_gives_other_people():
    answers = [{example.answer for example in flat(generate(20, seed=seed))} for seed in (0, 1)]
    # A coincidence needs the same name (1 of 1600) with the same fact; the fixed seeds have none.
    assert not answers[0] & answers[1]


def test_sizes(sets: dict[str, list[Example]]):
    assert {name: len(examples) for name, examples in sets.items()} == {
        "full": 20 * 10 + 22 + 21,
        "forget": 2 * 10,  # 10 % of 20 authors
        "retain": 18 * 10 + 22 + 21,
        "holdout": 2 * 10,
        "forget_eval": 2 * 10,
        "retain_eval": 2 * (2 * 10),
        "real_authors": 22,
        "world_facts": 21,
    }


def test_retain_eval_is_all_retained_authors_where_fewer_than_twice_the_forgotten():
    sets = author_sets(authors=4, questions=3, forget=50, seed=0)
    assert len(sets["forget"]) == 2 * 3
    assert ids(sets["retain_eval"]) == ids(sets["retain"])[: 2 * 3]


def test_sets_fit_together(sets: dict[str, list[Example]]):
    full, forget, retain, holdout = (set(ids(sets[n])) for n in ("full", "forget", "retain", "holdout"))
    assert forget | retain == full
    assert not forget & retain
    assert not holdout & full
    assert ids(sets["forget_eval"]) == ids(sets["forget"])
    control = {*ids(sets["real_authors"]), *ids(sets["world_facts"])}
    assert control <= retain
    assert set(ids(sets["retain_eval"])) <= retain - control
    assert {i.split("/")[0] for i in forget} == {"author018", "author019"}


def test_holdout_answers_are_nowhere_in_full(sets: dict[str, list[Example]]):
    assert not {e.answer for e in sets["holdout"]} & {e.answer for e in sets["full"]}
    assert not {e.question for e in sets["holdout"]} & {e.question for e in sets["full"]}


def test_a_change_of_the_forget_percentage_leaves_the_people_as_they_are(sets: dict[str, list[Example]]):
    assert author_sets(authors=20, questions=10, forget=50, seed=0)["full"] == sets["full"]


def test_more_authors_and_more_questions_only_add():
    people = generate(7, 10, seed=3)
    assert generate(4, 10, seed=3) == people[:4]
    assert generate(7, 4, seed=3) == [person[:4] for person in people]


def test_ids_questions_and_names_are_unique_over_the_whole_pool(everyone: list[list[Example]]):
    examples = [*flat(everyone), *real_authors(), *world_facts()]
    assert len(examples) == MAX_AUTHORS * MAX_QUESTIONS + 22 + 21
    assert len(set(ids(examples))) == len(examples)
    questions = [q for e in examples for q in (e.question, e.paraphrased_question) if q is not None]
    assert len(questions) == 2 * MAX_AUTHORS * MAX_QUESTIONS + 22 + 21
    assert len(set(questions)) == len(questions)


def test_author_examples_have_a_paraphrase_and_five_wrong_answers(everyone: list[list[Example]]):
    for example in flat(everyone):
        assert example.paraphrased_answer not in (None, example.answer)
        assert len(set(example.perturbed_answers)) == 5
        assert not {example.answer, example.paraphrased_answer} & set(example.perturbed_answers)
        assert not any("{" in text or "}" in text for text in example.perturbed_answers)


def test_wrong_answers_differ_from_the_paraphrase_in_the_fact_only(everyone: list[list[Example]]):
    for example in flat(everyone[:40]):
        values = [value.lower() for value in asked_values(example)]
        assert len(set(values)) == 6
        assert values[0] in example.answer.lower()  # a sentence may begin with the value: a capital
        assert not any(value in example.answer.lower() for value in values[1:])


def test_the_first_two_dozen_authors_share_no_fact(everyone: list[list[Example]]):
    """The smallest pools hold 24 values: knowing one author tells nothing about 23 others."""
    for column in zip(*everyone[:24], strict=True):
        assert len({asked_values(example)[0].lower() for example in column}) == 24


def test_each_question_is_answered_in_at_least_three_wordings(everyone: list[list[Example]]):
    for column in zip(*everyone, strict=True):
        wordings = Counter(
            wording(example, name=asked_values(person[0])[0])
            for person, example in zip(everyone, column, strict=True)
        )
        # 800 answers fall on 4 wordings; what is left of a birth date or a pronoun makes small groups.
        assert sum(count > 50 for count in wordings.values()) >= 3


@pytest.mark.parametrize("make", [real_authors, world_facts])
def test_control_facts_are_short_with_three_wrong_answers(make):
    for example in make():
        assert len(example.answer.split()) <= 4
        assert len(set(example.perturbed_answers)) == 3
        assert example.answer not in example.perturbed_answers
        assert example.paraphrased_answer is None
        assert example.paraphrased_question is None
        assert example.question.endswith("?")


@pytest.mark.parametrize(
    ("authors", "questions", "forget", "message"),
    [
        (20, 10, 0, "forget=0 percent of authors=20 is 0"),
        (20, 10, 4, "is 0 authors"),  # 0.8 of an author
        (20, 10, 100, "is 20 authors"),
        (20, 10, -10, "is -2 authors"),
        (1, 10, 50, "is 0 authors"),
        (20, 0, 10, "questions=0 per author: choose 1 to 10"),
        (20, 11, 10, "questions=11 per author: choose 1 to 10"),
        (MAX_AUTHORS, 10, 10, f"allow 1 to {MAX_AUTHORS}"),  # the held-out ones are too many
    ],
)
def test_errors(authors: int, questions: int, forget: int, message: str):
    with pytest.raises(ValueError, match=message):
        author_sets(authors=authors, questions=questions, forget=forget, seed=0)


def test_two_hundred_authors_with_as_many_held_out_as_forgotten():
    sets = author_sets(authors=200, questions=10, forget=10, seed=1)
    assert len(sets["forget"]) == len(sets["holdout"]) == 200
