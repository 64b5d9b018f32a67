"""Alternative answers as rows: an epoch meets each question once with each of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from launch.compose import checked, compose_run, force_overrides
from unlearn.data.alternatives import alternatives, identity
from unlearn.data.batching import Schedule
from unlearn.data.example import Example
from unlearn.data.tokenization import Encoder
from unlearn.distributed import World
from unlearn.errors import UserError
from unlearn.probes import WATCHED
from unlearn.probes.geffect.set_gradients import sampled
from unlearn.terms import bind, row_multiples
from unlearn.training.prepare import Preparation
from unlearn.training.step_data import Group, Unit

SETS_OF = {
    name: [Example(id=f"{name}/{i}", question=f"who {i}?", answer=f"{name} {i}") for i in range(size)]
    for name, size in (("forget", 4), ("retain", 7))
}


def groups(
    tokenizer: PreTrainedTokenizerBase, method: str, sets: Any = SETS_OF, **keys: Any
) -> tuple[Preparation, dict[str, Group]]:
    given = [f"method.alternatives.{key}={value}" for key, value in keys.items()]
    config = checked(compose_run(force_overrides([f"method={method}", *given])))
    alone = World(0, 1, torch.device("cpu"))
    ready = Preparation(config, bind(config.method), sets, Encoder(tokenizer), alone)
    return ready, ready.groups(None)  # type: ignore[arg-type]  # a target, which refusals do not need


def ids(group: Group, kind: str, row: int, visit: int = 0) -> list[int]:
    found: list[int] = group.sequence(Unit("forget", row, visit), kind).ids.tolist()
    return found


def test_each_alternative_is_a_row(nano_tokenizer: PreTrainedTokenizerBase) -> None:
    ready, found = groups(nano_tokenizer, "dpo", count=3, rows="all")
    one = groups(nano_tokenizer, "dpo", count=3)[1]["forget"]
    forget = found["forget"]
    assert forget.ids == [f"forget/{i}" for i in range(4) for _ in range(3)]
    assert len(found["retain"].ids) == 7
    texts = alternatives(ready.config.method.alternatives, SETS_OF["forget"], pool=[], seed=0)
    pairs = [(e.question, t) for e, some in zip(SETS_OF["forget"], texts, strict=True) for t in some]
    encoded = [s.ids.tolist() for s in ready.encoder.pairs(pairs)]
    for row in range(12):
        example, alternative = divmod(row, 3)
        for visit in range(3):  # whichever epoch it is
            assert ids(forget, "answers", row, visit) == ids(one, "answers", example)
            assert ids(forget, "alternatives", row, visit) == encoded[row]
        assert ids(one, "alternatives", example, alternative) == encoded[row]
    # What frozen models give is computed once for an answer, not once for a row.
    assert [len(forget.part(kind).sequences) for kind in ("answers", "alternatives")] == [4, 12]


def test_the_opening_of_an_answer_is_part_of_the_prompt(nano_tokenizer: PreTrainedTokenizerBase) -> None:
    opened = [replace(e, opening=f"I think {i}. So") for i, e in enumerate(SETS_OF["forget"])]
    ready, found = groups(nano_tokenizer, "dpo", sets=SETS_OF | {"forget": opened}, count=2)
    texts = alternatives(ready.config.method.alternatives, opened, pool=[], seed=0)
    for row, (example, own) in enumerate(zip(opened, texts, strict=True)):
        prompt = ready.encoder.format.prompt(nano_tokenizer, example.question or "") + example.opening
        for kind, text in (("answers", example.answer), ("alternatives", own[1])):
            sequence = found["forget"].sequence(Unit("forget", row, 1), kind)
            parts = sequence.ids[: sequence.answer_start], sequence.ids[sequence.answer_start : -1]
            before, after = (str(nano_tokenizer.decode(part)) for part in parts)
            assert before + after == prompt + text
            assert len(before) in (len(prompt), len(prompt) - 1)  # a token may hold the end of the prompt


def test_sampled_answers_do_not_follow_an_opening(nano_tokenizer: PreTrainedTokenizerBase) -> None:
    opened = [replace(SETS_OF["forget"][0], opening="I think. So ")]
    with pytest.raises(
        UserError, match=r"source=sampled: the answer to forget/0 begins with a text of the data"
    ):
        groups(nano_tokenizer, "altpo", sets=SETS_OF | {"forget": opened})


def test_an_edit_of_prompts_takes_the_beginning_of_a_plain_text_for_one(
    nano_tokenizer: PreTrainedTokenizerBase,
) -> None:
    text = "The writer was born in Lyon, where the river bends twice before it meets the sea."
    tokens = len(nano_tokenizer(text)["input_ids"])
    plain = {name: [Example(id=f"{name}/0", answer=text)] for name in ("forget", "retain")}
    starts = {
        method: groups(nano_tokenizer, method, sets=plain)[1]["forget"].sequence(
            Unit("forget", 0, 0), "answers"
        )
        for method in ("grun", "grad_diff")
    }
    assert {name: s.answer_start for name, s in starts.items()} == {"grun": int(0.8 * tokens), "grad_diff": 1}


def test_an_epoch_is_as_many_times_as_long(nano_tokenizer: PreTrainedTokenizerBase) -> None:
    _, found = groups(nano_tokenizer, "dpo", count=3, rows="all")
    schedule = Schedule({name: len(group.ids) for name, group in found.items()}, "forget", 5, seed=0)
    assert schedule.steps_per_epoch == 3  # twelve rows
    met = [row for step in range(3) for row, _ in schedule.rows(step)["forget"]]
    assert sorted(met) == list(range(12))


@pytest.mark.parametrize(
    ("method", "keys", "wanted"),
    [
        ("dpo", {}, {}),
        ("dpo", {"rows": "all", "count": 2}, {"forget": 2}),
        ("idk", {"rows": "all"}, {"forget": 5}),
        ("idk_ap", {"rows": "all"}, {"forget": 5, "retain": 5}),
        ("npo", {"rows": "all"}, {}),  # looks at no alternative
    ],
)
def test_which_sets_have_more_rows(method: str, keys: dict[str, Any], wanted: dict[str, int]) -> None:
    given = [f"method.alternatives.{key}={value}" for key, value in keys.items()]
    stated = checked(compose_run(force_overrides([f"method={method}", *given]))).method
    assert row_multiples(stated, bind(stated)) == wanted


def test_a_probe_looks_at_each_example_once(nano_tokenizer: PreTrainedTokenizerBase) -> None:
    ready, found = groups(nano_tokenizer, "dpo", count=3, rows="all")
    watched = ready.watched(found, WATCHED)
    one = groups(nano_tokenizer, "dpo", count=3)[1]
    whole, some, plain = sampled(watched, None, 0), sampled(watched, 2, 0), sampled(one, 2, 0)
    for rows in (whole.objective, whole.risk):
        assert rows["forget"] == [0, 3, 6, 9]
    for several, single in zip(some, plain, strict=True):
        assert len({watched["forget"].ids[row] for row in several["forget"]}) == 2
        assert [row // 3 for row in several["forget"]] == single["forget"]


def test_rows_are_of_a_runs_identity_where_they_are_not_usual() -> None:
    stated = checked(compose_run(["method=dpo"])).method.alternatives
    assert "rows" not in identity(stated)
    assert identity(stated.model_copy(update={"rows": "all"})) == {**identity(stated), "rows": "all"}
