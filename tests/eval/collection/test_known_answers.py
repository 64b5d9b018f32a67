"""What is known of an answer from scored ones is not generated again, and is what would be generated."""

from __future__ import annotations

import numpy as np
import torch

from eval.collection.collect import collect
from eval.collection.known_answers import beginnings, leading
from eval.collection.live_model import Live
from eval.collection.ragged import Ragged
from eval.collection.records import LikelihoodRecords, Records, write_records
from eval.collection.requests import Answer, Generation, Likelihood, Prompt
from tests.eval.eval_fixtures import encoder, examples, model
from unlearn.data.batching import collate
from unlearn.passes.forward import forward
from unlearn.passes.generate import takes_the_likeliest

LIMIT = 40
QUESTIONS = [example.question or "" for example in examples("forget")]
PROMPTS = Generation("generation", tuple(Prompt(q, q) for q in QUESTIONS), LIMIT)


def greedy(net, code, directory, begun=(), limit=LIMIT):
    """The tokens of each answer, and the number of calls of the model."""
    calls = []
    handle = net.register_forward_pre_hook(lambda *_: calls.append(1))
    live = Live(net, code, directory, max_rows=4)
    answers = live.answers(code.prompts(QUESTIONS), begun, max_new_tokens=limit)
    handle.remove()
    return answers, len(calls)


def test_a_known_beginning_changes_no_answer(tmp_path):
    net, code = model(seed=3), encoder()
    whole, calls = greedy(net, code, tmp_path)
    assert {len(answer) for answer in whole} > {LIMIT}  # some end before the limit
    begun = [answer[: 7 * i % 45] for i, answer in enumerate(whole)]
    assert len({len(each) for each in begun}) > 5
    some, fewer = greedy(net, code, tmp_path, begun)
    assert some == whole
    assert fewer < calls
    ended = [[*answer, code.end_id] for answer in whole]
    assert greedy(net, code, tmp_path, ended) == (whole, 0)
    assert greedy(net, code, tmp_path, ended, limit=3) == ([answer[:3] for answer in whole], 0)


def memorised(code, steps=100):
    """A model that has learnt the first six answers and says something like them to the other questions."""
    net = model(seed=3).eval()  # without dropout
    batch = collate(code.pairs([(e.question, e.answer) for e in examples("forget")[:6]]))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(steps):
        loss = -forward(net, batch).logp.mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return net


def test_scored_answers_give_the_beginnings_of_greedy_ones(tmp_path):
    code = encoder()
    net = memorised(code)
    whole, _ = greedy(net, code, tmp_path)
    scored = Likelihood("answers", tuple(Answer(e.id, 0, e.question, e.answer) for e in examples("forget")))
    collect(Live(net, code, tmp_path, max_rows=4), [scored, PROMPTS])
    known = beginnings(tmp_path, [scored, PROMPTS], code)
    lengths = []
    for question, prompt, tokens in zip(QUESTIONS, code.prompts(QUESTIONS), whole, strict=True):
        beginning = known.get((False, question), prompt)
        assert beginning[: len(prompt)] == prompt
        known_tokens = beginning[len(prompt) :]
        assert known_tokens == [*tokens, code.end_id][: len(known_tokens)]
        lengths.append(len(known_tokens) - len(tokens))
    assert max(lengths) == 1  # the end token, too
    assert min(lengths) < -2  # but of others only the beginning is known
    texts = [str(code.tokenizer.decode(tokens, skip_special_tokens=True)).strip() for tokens in whole]
    assert Records(tmp_path).generation("generation").text == texts


def test_only_greedy_answers_to_the_same_prompt_are_known(tmp_path):
    code = encoder()
    scored = Likelihood("scored", (Answer("a", 0, QUESTIONS[0], examples("forget")[0].answer),))
    collect(Live(memorised(code), code, tmp_path), [scored])
    prompt = (Prompt("a", QUESTIONS[0]),)
    assert len(beginnings(tmp_path, [scored, Generation("g", prompt, 5)], code)) == 1
    for other in (
        Generation("g", prompt, 5, raw=True),
        Generation("g", prompt, 5, temperature=1.0),
        Generation("g", (Prompt("a", "Another?"),), 5),
    ):
        assert beginnings(tmp_path, [scored, other], code) == {}


def test_a_plain_text_is_no_answer_to_an_empty_question(tmp_path):
    code, text = encoder(), Likelihood("text", (Answer("a", 0, None, "Ada was born in Oslo."),))
    ones = Ragged.of([[1.0, 1.0]])
    likely = LikelihoodRecords(["a"], np.array([0]), [None], ones, ones, ones, ones, np.array([True]))
    write_records(tmp_path, text, code, likely)
    assert beginnings(tmp_path, [text, Generation("g", (Prompt("a", ""),), 5)], code) == {}


def test_a_model_that_suppresses_tokens_generates_every_answer():
    net = model()
    assert takes_the_likeliest(net)
    net.generation_config.suppress_tokens = [5]
    assert not takes_the_likeliest(net)


def test_leading_values_by_hand():
    rows = Ragged.of([[1, 1, 0, 1], [0, 1], [], [1, 1], [1]])
    np.testing.assert_array_equal(leading(rows), [2, 0, 0, 2, 1])
    np.testing.assert_array_equal(leading(Ragged.of([[0], []])), [0, 0])
