"""Prefix strength by hand, the search against trying every prefix, and one pass against the search."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from eval.collection.ragged import Ragged
from eval.metrics.likelihood import extraction_strength
from eval.metrics.prefix import (
    common_subsequence,
    completes,
    prefix_strength,
    shortest_exact,
    shortest_prefixes,
)


def test_the_strength_by_hand():
    assert [prefix_strength(10, m, 30) for m in (10, 15, 30)] == [1, 0.75, 0]
    assert math.isnan(prefix_strength(10, 10, 10))


@pytest.mark.parametrize(
    ("generated", "rest", "mode", "strict", "released"),
    [
        ([1, 2, 3], [1, 2, 3], "exact", True, True),
        ([1, 2, 3, 9], [1, 2, 3], "exact", True, True),  # what follows the text does not count
        ([1, 2], [1, 2, 3], "exact", False, True),
        ([], [1, 2, 3], "exact", False, True),
        ([1, 9, 3], [1, 2, 3], "perturb", False, False),
        ([1, 2], [1, 3], "similar", True, True),  # one of two
        ([1], [1, 2, 3], "similar", False, True),  # one of three, and of the one that was generated
        ([1, 8, 9], [1, 2, 3], "similar", False, False),
        ([], [1], "similar", False, True),
        ([9, 9, 1, 2], [1, 2], "similar", False, False),
    ],
)
def test_what_completes_a_text(generated, rest, mode, strict, released):
    assert completes(generated, rest, mode) is strict
    assert completes(generated, rest, mode, strict=False) is released


def test_common_subsequences_equal_the_recursion():
    def plain(one: list[int], other: list[int]) -> int:
        if not one or not other:
            return 0
        if one[-1] == other[-1]:
            return 1 + plain(one[:-1], other[:-1])
        return max(plain(one[:-1], other), plain(one, other[:-1]))

    draws = random.Random(0)
    for _ in range(60):
        one, other = ([draws.randrange(3) for _ in range(draws.randrange(8))] for _ in range(2))
        assert common_subsequence(one, other) == plain(one, other)


def test_the_search_finds_the_shortest_prefix_of_all_texts_together():
    texts = [(3, 3 + length, 3 + first) for length in range(7) for first in range(length + 1)]
    calls: list[dict[int, int]] = []

    def holds(asked: dict[int, int]) -> dict[int, bool]:
        calls.append(asked)
        assert all(texts[i][0] <= m < texts[i][1] for i, m in asked.items())
        return {i: m >= texts[i][2] for i, m in asked.items()}

    shortest = shortest_prefixes([left for left, _, _ in texts], [right for _, right, _ in texts], holds)
    assert shortest == [wanted for *_, wanted in texts]
    assert len(calls) <= 4  # of seven prefixes the third try decides; the texts share the calls
    tries = [(i, m) for asked in calls for i, m in asked.items()]
    assert len(tries) == len(set(tries))
    assert shortest_prefixes([5], [5], holds) == [5]


def test_the_search_takes_the_middle_as_the_released_code_does():
    """On a condition that is not monotone, which prefixes are tried decides: 8, then 9."""
    asked_for: list[int] = []

    def holds(asked: dict[int, int]) -> dict[int, bool]:
        asked_for.append(asked[0])
        return {0: asked[0] in (6, 9)}

    assert shortest_prefixes([6], [10], holds) == [9]
    assert asked_for == [8, 9]


def test_one_pass_equals_the_search_on_a_model_of_the_next_token():
    """Greedy decoding of any next-token function, tried from every prefix, against its arg-maxes."""
    draws = random.Random(1)
    for _ in range(200):
        table = [draws.randrange(4) for _ in range(64)]

        def following(tokens: list[int], table: list[int] = table) -> int:
            return table[(sum(tokens) * 5 + len(tokens) * 7) % 64]

        text = [draws.randrange(4), draws.randrange(4)]
        while len(text) < 9:  # mostly what the model would say
            text.append(following(text) if draws.random() < 0.7 else draws.randrange(4))
        left, right = 2, len(text)
        correct = [following(text[:i]) == text[i] for i in range(left, right)]

        def holds(asked: dict[int, int], text: list[int] = text) -> dict[int, bool]:
            results = {}
            for i, m in asked.items():
                decoded = text[:m]
                while len(decoded) < len(text):
                    decoded.append(following(decoded))
                results[i] = completes(decoded[m:], text[m:], "exact")
            return results

        by_search = shortest_prefixes([left], [right], holds)[0]
        every = [m for m in range(left, right) if holds({0: m})[0]]
        shortest = shortest_exact(np.array(correct), left)
        assert shortest == by_search == min(every, default=right)
        strength = extraction_strength(Ragged.of([correct]), np.array([False]))
        assert prefix_strength(left, shortest, right) == pytest.approx(strength[0])
