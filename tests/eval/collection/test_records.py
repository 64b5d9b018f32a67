from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from eval.collection.ragged import Ragged
from eval.collection.records import (
    GenerationRecords,
    LikelihoodRecords,
    NormRecords,
    Records,
    RecordsError,
    is_current,
    read_records,
    record_path,
    replacing,
    tokenizer_key,
    write_records,
)
from eval.collection.requests import Answer, Generation, GradientNorm, Likelihood, Prompt
from tests.eval.eval_fixtures import encoder, plain
from unlearn.data.tokenization import PromptFormat

REQUEST = Likelihood("forget/perturbed", (Answer("a", 0, "q", "x"), Answer("a", 1, "q", "y")))
RECORDS = LikelihoodRecords(
    example=["a", "a"],
    slot=np.array([0, 1], dtype=np.int32),
    problem=[None, "cut off"],
    logp=Ragged(np.array([-1, -2, -3], dtype=np.float32), np.array([0, 1, 3])),
    correct=Ragged(np.array([True, False, True]), np.array([0, 1, 3])),
    mean=Ragged(np.array([-4, -5, -6], dtype=np.float32), np.array([0, 1, 3])),
    variance=Ragged(np.array([1, 2, 3], dtype=np.float32), np.array([0, 1, 3])),
    ended=np.array([True, False]),
)


def test_ragged_rows():
    rows = Ragged.of([[1, 2], [], [3]])
    assert [row.tolist() for row in rows] == [[1, 2], [], [3]]
    np.testing.assert_array_equal(rows.mean(), [1.5, np.nan, 3])
    assert [row.tolist() for row in rows.take([2, 0, 1, 0])] == [[3], [1, 2], [], [1, 2]]
    assert [row.tolist() for row in Ragged.of([])] == []
    assert [row.tolist() for row in rows.take([])] == []


def test_ragged_grouped_keeps_the_order_of_each_owner():
    rows = Ragged.grouped(np.array([1.0, 2.0, 3.0, 4.0]), ["b", "a", "b", "a"], ["a", "none", "b"])
    assert [row.tolist() for row in rows] == [[2, 4], [], [1, 3]]


def test_ragged_through_arrow_with_an_offset():
    rows = Ragged.of([[1, 2], [], [3]])
    column = pa.chunked_array([rows.to_arrow()[1:], rows.to_arrow()])
    assert [row.tolist() for row in Ragged.from_arrow(column)] == [[], [3], [1, 2], [], [3]]


def test_written_and_read_again(tmp_path):
    write_records(tmp_path, REQUEST, encoder(), RECORDS)
    found = Records(tmp_path).likelihood("forget/perturbed")
    assert found.example == ["a", "a"]
    assert found.logp.values.dtype == np.float32
    assert found.correct.values.dtype == bool
    for column in ("logp", "correct", "mean", "variance"):
        np.testing.assert_array_equal(getattr(found, column).values, getattr(RECORDS, column).values)
        np.testing.assert_array_equal(getattr(found, column).offsets, [0, 1, 3])
    np.testing.assert_array_equal(found.slot, [0, 1])
    np.testing.assert_array_equal(found.ended, [True, False])
    assert [p.name for p in record_path(tmp_path, "forget/perturbed").parent.iterdir()] == [
        "perturbed.parquet"
    ]

    assert found.problem == [None, "cut off"]


def test_texts_and_norms_written_and_read_again(tmp_path):
    prompts = (Prompt("a", "q", truth="Où"), Prompt("b", "q"))
    asked = Generation("forget/generation", prompts, 5, samples=2, temperature=1.0)
    written = GenerationRecords(
        example=["a", "a", "b", "b"],
        sample=np.array([0, 1, 0, 1]),
        problem=[None, None, "too long", "too long"],
        text=["Où ?", "", None, None],
        truth=["Où", "Où", None, None],
    )
    write_records(tmp_path, asked, encoder(), written)
    records = Records(tmp_path)
    found = records.generation("forget/generation")
    assert plain(found) == plain(written)
    # the samples of an item stay together, items in the order asked for
    assert found.select(prompts[::-1]).text == [None, None, "Où ?", ""]
    with pytest.raises(RecordsError, match="does not hold likelihoods"):
        records.likelihood("forget/generation")

    norms = NormRecords(
        ["a", "a"], np.array([0, 1], dtype=np.int32), [None, "empty"], np.array([2.5, np.nan])
    )
    write_records(tmp_path, GradientNorm("forget/gradients", REQUEST.items), encoder(), norms)
    back = records.norms("forget/gradients").select(REQUEST.items[::-1])
    np.testing.assert_array_equal(back.norm, [np.nan, 2.5])
    assert back.problem == ["empty", None]
    with pytest.raises(RecordsError, match="does not hold gradient norms"):
        records.norms("forget/generation")
    assert records.tokenizer == tokenizer_key(encoder())


def test_select_gives_the_items_in_their_order_and_names_what_lacks():
    found = RECORDS.select([Answer("a", 1, None, ""), Answer("a", 0, None, "")])
    assert [row.tolist() for row in found.logp] == [[-2, -3], [-1]]
    assert found.ended.tolist() == [False, True]
    with pytest.raises(RecordsError, match=r"1 of 1 examples have no record, first \('b', 0\)"):
        RECORDS.select([Answer("b", 0, None, "")])


def test_current_only_when_asked_the_same_in_the_same_way(tmp_path):
    same = encoder()
    assert not is_current(tmp_path, REQUEST, same)
    write_records(tmp_path, REQUEST, same, RECORDS)
    assert is_current(tmp_path, REQUEST, same)
    assert not is_current(tmp_path, Likelihood(REQUEST.name, REQUEST.items[:1]), same)
    assert not is_current(tmp_path, REQUEST, replace(same, max_length=9))
    assert not is_current(tmp_path, REQUEST, replace(same, format=PromptFormat(template="{question} ")))
    record_path(tmp_path, REQUEST.name).write_bytes(b"PAR1 cut off")
    assert not is_current(tmp_path, REQUEST, same)


def test_an_error_while_writing_leaves_the_old_file(tmp_path):
    target = tmp_path / "results.json"
    target.write_text("old")
    with pytest.raises(UnicodeEncodeError), replacing(target) as path:
        path.write_text("half \ud800", encoding="utf-8")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_no_records(tmp_path):
    with pytest.raises(RecordsError, match="evaluate the model first"):
        read_records(tmp_path, "forget/answer")


def test_requests_that_cannot_be_answered_are_refused():
    with pytest.raises(ValueError, match=r"has example a \(slot 0\) twice"):
        Likelihood("x", (Answer("a", 0, "q", "x"), Answer("a", 0, "q", "y")))
    with pytest.raises(ValueError, match="has no items"):
        Generation("x", (), 3)
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        Generation("x", (Prompt("a", "q"),), 0)
