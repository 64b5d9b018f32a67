"""An evaluation that is cut off goes on where it was."""

from __future__ import annotations

import numpy as np
import pytest

from eval.collection import collect as collecting
from eval.collection.collect import collect
from eval.collection.live_model import Live
from eval.collection.records import Records
from eval.collection.requests import Answer, Generation, GradientNorm, Likelihood, Prompt
from tests.eval.eval_fixtures import encoder, examples, model
from tests.tolerance import PASS, assert_close


class Cut(Exception):
    """The process dies here."""


def requests():
    items = examples("forget")
    answers = tuple(Answer(e.id, 0, e.question, e.answer) for e in items)
    prompts = tuple(Prompt(e.id, e.question or "") for e in items)
    return [
        Likelihood("forget/answer", answers),
        GradientNorm("forget/gradients", answers),
        Generation("forget/generation", prompts, 6),
        Generation("forget/samples", prompts, 6, samples=2, temperature=1.0),
    ]


def run(directory, cut_after=None):
    """Collect in small portions, and die in the middle of one; returns how many calls the model got."""
    net, calls = model(), [0]

    def count(*_):
        calls[0] += 1
        if cut_after is not None and calls[0] > cut_after:
            raise Cut

    net.register_forward_pre_hook(count)
    live = Live(net, encoder(), directory, max_tokens=60, max_rows=2)
    collect(live, requests())
    return calls[0]


@pytest.fixture(autouse=True)
def small_portions(monkeypatch):
    monkeypatch.setattr(collecting, "_FORWARDS", 2)
    monkeypatch.setattr(collecting, "_ROUNDS", 1)


@pytest.mark.parametrize("share", [0.5, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.15, 0.9))])
def test_a_cut_loses_no_more_than_a_portion(tmp_path, share):
    whole = run(tmp_path / "whole")
    cut = int(share * whole)
    with pytest.raises(Cut):
        run(tmp_path / "cut", cut_after=cut)
    rest = run(tmp_path / "cut")
    # A portion is two forwards, or one round of generation: at most six calls, one a token.
    assert whole - cut <= rest <= whole - cut + 6
    one, other = Records(tmp_path / "whole"), Records(tmp_path / "cut")
    a, b = one.likelihood("forget/answer"), other.likelihood("forget/answer")
    np.testing.assert_array_equal(a.logp.values, b.logp.values)
    assert a.example == b.example
    np.testing.assert_array_equal(one.norms("forget/gradients").norm, other.norms("forget/gradients").norm)
    for name in ("forget/generation", "forget/samples"):
        assert one.generation(name).text == other.generation(name).text


@pytest.mark.slow
def test_portions_do_not_stay_on_disk_and_change_nothing(tmp_path, monkeypatch):
    run(tmp_path / "many")
    assert not (tmp_path / "many" / "records" / ".parts").exists()
    monkeypatch.setattr(collecting, "_FORWARDS", 1000)
    monkeypatch.setattr(collecting, "_ROUNDS", 1000)
    run(tmp_path / "one")
    many, one = Records(tmp_path / "many"), Records(tmp_path / "one")
    mine, other = many.likelihood("forget/answer"), one.likelihood("forget/answer")
    assert_close(mine.logp.values, other.logp.values, terms=PASS)
    assert many.generation("forget/generation").text == one.generation("forget/generation").text
    assert many.generation("forget/samples").text == one.generation("forget/samples").text


@pytest.mark.slow
def test_a_portion_that_was_cut_short_on_disk_is_made_again(tmp_path):
    with pytest.raises(Cut):
        run(tmp_path, cut_after=9)
    parts = sorted((tmp_path / "records" / ".parts").iterdir())
    assert parts
    for part in parts:
        part.write_bytes(part.read_bytes()[:10])
    run(tmp_path)
    run(tmp_path.with_name("clean"))
    a, b = (Records(d).likelihood("forget/answer") for d in (tmp_path, tmp_path.with_name("clean")))
    np.testing.assert_array_equal(a.logp.values, b.logp.values)


@pytest.mark.slow
def test_samples_follow_from_seed_and_example_alone(tmp_path):
    prompts = tuple(Prompt(e.id, e.question or "") for e in examples("forget"))

    def samples(directory, items, rows, seed=0):
        live = Live(model(), encoder(), directory, max_rows=rows)
        collect(live, [Generation("s", items, 6, samples=3, temperature=1.0, seed=seed)])
        found = Records(directory).generation("s").select(prompts)
        return list(zip(found.example, found.sample.tolist(), found.text, strict=True))

    first = samples(tmp_path / "a", prompts, 100)
    assert samples(tmp_path / "b", prompts[::-1], 2) == first
    assert samples(tmp_path / "c", prompts, 100, seed=1) != first
    assert len({text for _, _, text in first}) > len(prompts)  # samples of one prompt differ
