"""From a person's marks on an answer to the tokens that carry them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.paths import SHARED
from unlearn.data.annotations import load_annotations
from unlearn.data.example import Example
from unlearn.data.tokenization import Encoder, PromptFormat
from unlearn.errors import UserError

ANN = Example(id="forget10/12", question="Who is Ann?", answer="Ann Ünal was born in Lyon, in 1956.")
TEXT = Example(id="forget10/13", answer="Lyon is a city. Lyon is old.")


@pytest.fixture(scope="module", params=["nano", "tofu"])
def tokenizer(request: pytest.FixtureRequest, nano_tokenizer: PreTrainedTokenizerBase) -> Any:
    if request.param == "nano":
        return nano_tokenizer
    folder = SHARED / "models" / "nano-tofu-full"
    if not folder.is_dir():
        pytest.skip(f"no shared models at {SHARED} (UNLEARN_SHARED)")
    return AutoTokenizer.from_pretrained(folder)


def load(tmp_path: Path, entries: Any, examples: list[Example]) -> list[list[tuple[int, int]]]:
    file = tmp_path / "important.json"
    file.write_text(entries if isinstance(entries, str) else json.dumps(entries))
    return load_annotations(file, examples)


def marked(encoder: Encoder, example: Example, *spans: tuple[int, int]) -> list[str]:
    """The text of each run of marked tokens."""
    pair = (example.question, example.answer)
    (sequence,), (flags,) = encoder.pairs([pair]), encoder.important([pair], [spans])
    assert flags.dtype == np.bool_
    assert flags.shape == (sequence.answer_length,)
    assert not (sequence.ended and flags[-1])
    ids = sequence.ids[sequence.answer_start :]
    edges = np.flatnonzero(np.diff(flags, prepend=False, append=False)).reshape(-1, 2)
    return [str(encoder.tokenizer.decode(ids[a:b].tolist())) for a, b in edges]


def span(example: Example, piece: str) -> tuple[int, int]:
    start = example.answer.index(piece)
    return start, start + len(piece)


def test_spans_and_pieces(tmp_path: Path) -> None:
    # "Lyon" begins TEXT and its second sentence, "Lyon is a city. " being 16 characters long.
    found = load(
        tmp_path,
        {"forget10/12": [[0, 8], "1956"], "1": ["Lyon"], "forget10/400": ["of another example"]},
        [ANN, TEXT],
    )
    assert found == [[(0, 8), (30, 34)], [(0, 4), (16, 20)]]
    assert ANN.answer[30:34] == "1956"
    assert load(tmp_path, {"0": [], "1": [[0, 4], "Lyon", [0, 4]]}, [ANN, TEXT]) == [[], [(0, 4), (16, 20)]]
    # The id is looked up first.
    assert load(tmp_path, {"0": ["Ann"], "forget10/12": ["born"]}, [ANN]) == [[(13, 17)]]
    # Characters that mean something in a pattern are themselves.
    assert load(tmp_path, {"0": ["."]}, [TEXT]) == [[(14, 15), (27, 28)]]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["Ann", "Paris", "lyon"], "forget10/12: not in the answer 'Ann Ünal.*': 'Paris', 'lyon'"),
        ([""], "not in the answer .*: ''"),
        ([[3, 3]], r"\[3, 3\] is neither a part nor a span of the answer, which has 35 characters"),
        ([[0, 36]], "which has 35 characters"),
        ([[-1, 3]], "neither"),
        ([[0, 1, 2]], "neither"),
        ([[0, True]], "neither"),
        ([[0.0, 2.0]], "neither"),
        ([7], "7 is neither"),
        ("Ann", "expected a list of spans or parts of the answer, found the text"),
    ],
)
def test_entries_that_do_not_fit(items: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as raised:
        load(tmp_path, {"forget10/12": items}, [ANN])
    assert str(raised.value).startswith(f"dataset.annotations={tmp_path / 'important.json'}: ")


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    more = [Example(id=f"forget10/{i}", answer="x") for i in range(20, 27)]
    with pytest.raises(UserError) as raised:
        load(tmp_path, {"forget10/12": ["Paris"], "1": ["Rome"]}, [ANN, TEXT, *more])
    message = str(raised.value)
    assert "'Paris'" in message
    assert "'Rome'" in message
    # Five of the seven are named.
    assert (
        "no entry for forget10/20, forget10/21, forget10/22, forget10/23, forget10/24 and 2 more" in message
    )
    assert "write []" in message


def test_files_that_are_no_annotations(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset\.annotations=.*gone\.json: there is no such file"):
        load_annotations(tmp_path / "gone.json", [ANN])
    with pytest.raises(UserError, match="line 1: not JSON"):
        load(tmp_path, "{", [ANN])
    with pytest.raises(UserError, match="expected an object from example id to spans, found a list of 1"):
        load(tmp_path, [["Ann"]], [ANN])


@pytest.mark.parametrize("plain", [False, True])
def test_tokens_of_the_spans(plain: bool, tokenizer: PreTrainedTokenizerBase) -> None:
    template = "Question: {question}\nAnswer: " if plain else None
    encoder = Encoder(tokenizer, PromptFormat(template=template))
    assert marked(encoder, ANN) == []
    found = marked(encoder, ANN, span(ANN, "born"), span(ANN, "1956"))
    assert [text.strip() for text in found] == ["born", "1956"]
    # Spaces at the edges take no neighbour along.
    assert [text.strip() for text in marked(encoder, ANN, span(ANN, " born "))] == ["born"]
    assert marked(encoder, ANN, span(ANN, " ")) == []
    # A letter of two bytes in the middle; the first word may share its token with the template's space.
    assert [text.strip() for text in marked(encoder, ANN, span(ANN, "Ann Ünal"))] == ["Ann Ünal"]
    # The whole answer: everything but the end.
    (flags,) = encoder.important([(ANN.question, ANN.answer)], [[(0, len(ANN.answer))]])
    assert flags[:-1].all()
    assert not flags[-1]


def test_a_part_of_a_token_marks_it(bpe_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> None:
    tokenizer = bpe_tokenizer(*["is foobar", "a foobar", "foobar so"] * 5)
    encoder = Encoder(tokenizer, PromptFormat(template="{question}: "))
    example = Example(id="x/0", question="a", answer="a foobar so")
    assert marked(encoder, example, (4, 6)) == [" foobar"]
    # The "r" and the space after it, then the "s" too.
    assert marked(encoder, example, (7, 9)) == [" foobar"]
    assert marked(encoder, example, (7, 10)) == [" foobar so"]
    # One token over the boundary: "foo" of the prompt and "bar" of the answer.
    encoder = Encoder(tokenizer, PromptFormat(template="is {question}"))
    example = Example(id="x/1", question="foo", answer="bar so")
    assert marked(encoder, example, (0, 1)) == [" foobar"]
    assert marked(encoder, example, (4, 6)) == [" so"]


def test_every_byte_of_a_letter_is_marked(tokenizer: PreTrainedTokenizerBase) -> None:
    example = Example(id="x/0", question="Where?", answer="In 日本, or 🙂.")
    encoder = Encoder(tokenizer)
    assert marked(encoder, example, span(example, "本"))[0].endswith("本")
    assert [text.strip() for text in marked(encoder, example, span(example, "🙂"))] == ["🙂"]


def test_plain_texts_have_no_first_token(tokenizer: PreTrainedTokenizerBase) -> None:
    encoder = Encoder(tokenizer)
    (sequence,), (flags,) = (
        encoder.pairs([(None, TEXT.answer)]),
        encoder.important([(None, TEXT.answer)], [[(0, 1)]]),
    )
    # The span lies in the first token, which nothing predicts.
    assert sequence.answer_start == 1
    assert not flags.any()
    assert marked(encoder, TEXT, (16, 20)) == [" Lyon"]


def test_cut_answers(tokenizer: PreTrainedTokenizerBase) -> None:
    pair = (ANN.question, ANN.answer)
    spans = [span(ANN, "born"), span(ANN, "1956")]
    (whole,) = Encoder(tokenizer).pairs([pair])
    (flags,) = Encoder(tokenizer).important([pair], [spans])
    for length in range(whole.answer_start + 1, len(whole.ids) + 1):
        encoder = Encoder(tokenizer, max_length=length)
        (cut,) = encoder.important([pair], [spans])
        assert len(cut) == encoder.pairs([pair])[0].answer_length == length - whole.answer_start
        assert cut.tolist() == flags[: len(cut)].tolist()


def test_each_pair_has_its_own_spans(tokenizer: PreTrainedTokenizerBase) -> None:
    encoder = Encoder(tokenizer)
    pairs = [(ANN.question, ANN.answer), (None, TEXT.answer), ("Who?", "Me.")]
    spans = [[(0, 3)], [(16, 20)], []]
    together = encoder.important(pairs, spans)
    for pair, own, found in zip(pairs, spans, together, strict=True):
        assert found.tolist() == encoder.important([pair], [own])[0].tolist()
    assert encoder.important([], []) == []
    with pytest.raises(ValueError, match="shorter"):
        encoder.important(pairs, spans[:2])
