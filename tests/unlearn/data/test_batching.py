"""Which rows make a step, who computes them, and the tensors they become."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unlearn.data.batching import Schedule, collate, deal
from unlearn.data.tokenization import TokenSequence

sizes = st.integers(1, 23)
lengths_of_rows = st.lists(st.integers(2, 60), min_size=1, max_size=40)
limits = st.one_of(st.none(), st.integers(1, 200))


def epochs(schedule: Schedule, count: int) -> list[dict[str, list[int]]]:
    """The rows of each of the first epochs, by group, in order."""
    result = []
    for epoch in range(count):
        rows: dict[str, list[int]] = {group: [] for group in schedule.sizes}
        for step in range(schedule.steps_per_epoch):
            for group, found in schedule.rows(epoch * schedule.steps_per_epoch + step).items():
                assert {visit for _, visit in found} <= {epoch} or group != "forget"
                rows[group] += [row for row, _ in found]
        result.append(rows)
    return result


@given(anchor=sizes, other=sizes, batch=st.integers(1, 30), seed=st.integers(0, 9))
def test_epochs_of_the_anchor(anchor: int, other: int, batch: int, seed: int) -> None:
    schedule = Schedule({"forget": anchor, "retain": other}, "forget", batch, seed)
    met: Counter[int] = Counter()
    for rows in epochs(schedule, 4):
        assert sorted(rows["forget"]) == list(range(anchor))  # each row once
        assert len(rows["retain"]) == anchor
        met.update(rows["retain"])
    counts = [met[row] for row in range(other)]
    assert max(counts) - min(counts) <= 1
    assert sum(counts) == 4 * anchor


def test_last_batch_of_an_epoch_is_smaller() -> None:
    schedule = Schedule({"forget": 7, "retain": 3}, "forget", 3, 0)
    assert schedule.steps_per_epoch == 3
    for step, size in enumerate([3, 3, 1, 3, 3, 1]):
        assert {group: len(rows) for group, rows in schedule.rows(step).items()} == {
            "forget": size,
            "retain": size,
        }


def test_rows_depend_on_seed_and_step_alone() -> None:
    forwards = Schedule({"forget": 50, "retain": 120}, "forget", 8, 3)
    backwards = Schedule({"forget": 50, "retain": 120}, "forget", 8, 3)
    wanted = {step: forwards.rows(step) for step in range(200)}  # more epochs than the memory holds
    assert {step: backwards.rows(step) for step in reversed(range(200))} == wanted
    other = Schedule({"forget": 50, "retain": 120}, "forget", 8, 4)
    assert other.rows(0) != wanted[0]
    # Epochs differ, and so do groups of one size.
    later = wanted[forwards.steps_per_epoch]["forget"]
    assert [row for row, _ in wanted[0]["forget"]] != [row for row, _ in later]
    twins = Schedule({"forget": 50, "retain": 50}, "forget", 50, 0).rows(0)
    assert twins["forget"] != twins["retain"]


def test_a_groups_order_does_not_depend_on_its_company() -> None:
    alone = Schedule({"forget": 10}, "forget", 4, 0)
    company = Schedule({"retain": 99, "forget": 10, "template": 10}, "forget", 4, 0)
    assert [alone.rows(s)["forget"] for s in range(9)] == [company.rows(s)["forget"] for s in range(9)]


def test_order_is_kept_across_versions() -> None:
    # A change here changes the batches of every run there is, and what they resume with.
    schedule = Schedule({"forget": 6, "retain": 4}, "forget", 4, 0)
    assert [schedule.rows(step) for step in range(2)] == [
        {"forget": [(5, 0), (3, 0), (2, 0), (4, 0)], "retain": [(1, 0), (2, 0), (3, 0), (0, 0)]},
        {"forget": [(0, 0), (1, 0)], "retain": [(1, 1), (2, 1)]},
    ]


@given(lengths=lengths_of_rows, ranks=st.integers(1, 5), max_tokens=limits, max_rows=limits)
def test_deal(lengths: list[int], ranks: int, max_tokens: int | None, max_rows: int | None) -> None:
    if max_tokens is not None:
        max_tokens = max(max_tokens, *lengths)
    dealt = deal(lengths, ranks, max_tokens=max_tokens, max_rows=max_rows)
    assert len(dealt) == ranks
    assert len({len(micros) for micros in dealt}) == 1
    micros = [micro for rank in dealt for micro in rank]
    assert sorted(row for micro in micros for row in micro) == list(range(len(lengths)))
    for micro in micros:
        if max_rows is not None:
            assert len(micro) <= max_rows
        if max_tokens is not None and micro:
            assert len(micro) * max(lengths[row] for row in micro) <= max_tokens
    if len(lengths) >= len(micros):
        assert all(micros)
    assert dealt == deal(lengths, ranks, max_tokens=max_tokens, max_rows=max_rows)


@given(lengths=lengths_of_rows, ranks=st.integers(1, 5))
def test_like_lengths_share_a_micro_batch(lengths: list[int], ranks: int) -> None:
    """The micro-batches are intervals of the lengths: what one pads, another does not pad more."""
    ranges = [
        (min(lengths[r] for r in micro), max(lengths[r] for r in micro))
        for rank in deal(lengths, ranks, max_tokens=128)
        for micro in rank
        if micro
    ]
    ranges.sort()
    assert all(a[1] <= b[0] for a, b in pairwise(ranges))


def test_deal_evens_out_the_ranks() -> None:
    # One row of 40 tokens costs as much as four of 10, and so they are dealt.
    assert deal([10, 10, 40, 10, 10], 2) == [[[2]], [[0, 1, 3, 4]]]


def test_limits_of_one_row() -> None:
    assert deal([3, 9, 5], 1, max_rows=1) == [[[1], [2], [0]]]
    assert deal([3, 9, 5], 1, max_tokens=1) == [[[1], [2], [0]]]  # all too long: each alone


def test_no_limit_makes_one_micro_batch_of_all_rows() -> None:
    assert deal([3, 9, 5], 1) == [[[1, 2, 0]]]


def test_a_row_above_the_limit_does_not_lift_it_for_others() -> None:
    (micros,) = deal([3, 1, 1, 1, 1], 1, max_tokens=2)
    assert sorted(map(len, micros)) == [1, 2, 2]


def test_fewer_rows_than_ranks() -> None:
    dealt = deal([5, 5], 4)
    assert [len(micros) for micros in dealt] == [1, 1, 1, 1]
    assert sorted(map(len, (micros[0] for micros in dealt))) == [0, 0, 1, 1]


def test_collate_by_hand() -> None:
    first = TokenSequence(np.array([10, 11, 12, 13, 14]), 3, True)
    second = TokenSequence(np.array([20, 21, 22]), 1, True)
    batch = collate([first, second], pad_id=7)
    # The last token predicts nothing: inputs are one shorter than the longest sequence.
    assert batch.input_ids.tolist() == [[10, 11, 12, 13], [20, 21, 7, 7]]
    # 13 and 14 are predicted at positions 2 and 3 of row 0; 21 and 22 at 0 and 1 of row 1, flat 4 and 5.
    assert batch.index.tolist() == [2, 3, 4, 5]
    assert batch.labels.tolist() == [13, 14, 21, 22]
    assert batch.lengths.tolist() == [2, 2]
    assert (batch.prompt_end.tolist(), batch.widths.tolist()) == ([2, 0], [4, 2])
    assert all(tensor.dtype == torch.int64 for tensor in vars(batch).values() if isinstance(tensor, Tensor))


@given(
    st.lists(
        st.integers(2, 30).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n - 1))),
        min_size=1,
        max_size=12,
    )
)
def test_collate_pairs_each_answer_token_with_the_one_before(shapes: list[tuple[int, int]]) -> None:
    # Ids are unique, so a position's token and its label tell where they came from.
    rows, first = [], 1
    for length, start in shapes:
        rows.append(TokenSequence(np.arange(first, first + length), start, True))
        first += length
    batch = collate(rows)
    before = batch.input_ids.flatten()[batch.index]
    assert torch.equal(before + 1, batch.labels)
    assert batch.lengths.tolist() == [length - start for length, start in shapes]
    ends = batch.lengths.cumsum(0).tolist()
    for s, stop in zip(rows, ends, strict=True):
        assert batch.labels[stop - s.answer_length : stop].tolist() == s.ids[s.answer_start :].tolist()


def test_batch_moves_whole() -> None:
    batch = collate([TokenSequence(np.array([1, 2]), 1, True)]).to("meta")
    assert all(tensor.device.type == "meta" for tensor in vars(batch).values() if isinstance(tensor, Tensor))


@pytest.mark.parametrize("step", [0, 5, 10**9])
def test_any_step_can_be_asked_for_directly(step: int) -> None:
    rows = Schedule({"forget": 4000, "retain": 3600}, "forget", 32, 1).rows(step)
    assert all(0 <= row < 3600 for row, _ in rows["retain"])
    assert len({row for row, _ in rows["forget"]}) == 32
