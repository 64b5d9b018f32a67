"""An LLM judge: a real server for the address, a real small model on this machine, aggregates by hand."""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist

from eval.benchmark import READ, find, is_live, options_of
from eval.benchmarks.llm_judge import Options, aggregates, check, forms
from eval.collection.records import Records
from eval.evaluate import evaluate
from eval.llm_judge.endpoint import Endpoint, EndpointError
from eval.llm_judge.local_model import LocalJudge, LocalJudgeError, words, yes_share
from eval.llm_judge.verdicts import Cache, Verdict, cost, judged, parsed, prompt
from eval.metric_catalog import info
from tests.eval.eval_fixtures import encoder, examples, model
from tests.tolerance import PASS, assert_close
from tests.worlds import together
from unlearn.data.example import Example
from unlearn.distributed import ALONE, World
from unlearn.errors import ConfigError, UserError
from unlearn.files import read_json
from unlearn.models import export

KEY = "sk-test-8c1f0d2e4b6a"
Reply = tuple[int, dict[str, Any] | str]


def chat(text: str | None) -> Reply:
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}


@dataclass
class Server:
    """Answers each call by `reply(prompt, number of the call)`, and keeps what was sent."""

    reply: Callable[[str, int], Reply]
    url: str = ""
    sent: list[dict[str, Any]] = field(default_factory=list)
    headers: list[str | None] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def server(reply: Callable[[str, int], Reply]) -> Iterator[Server]:
    own = Server(reply)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with own.lock:
                own.sent.append(body)
                own.headers.append(self.headers["Authorization"])
                number = len(own.sent)
            known = self.path == "/v1/chat/completions"
            status, content = own.reply(body["messages"][0]["content"], number) if known else (404, self.path)
            data = (content if isinstance(content, str) else json.dumps(content)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None: ...

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    own.url = f"http://127.0.0.1:{http.server_port}/v1"
    try:
        yield own
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)


def judge(url: str, **options: Any) -> Endpoint:
    return Endpoint(url, "small", "JUDGE_KEY", backoff=0.001, **options)


def asked_of(prompt_text: str, part: str) -> str:
    return prompt_text.split(f"<{part}>\n")[1].split(f"\n</{part}>")[0]


# -- parts -----------------------------------------------------------------------------------------------


def test_worst_and_mean_over_forms_by_hand():
    # Two forms of three facts: the first reveals fact 1, the second fact 3.
    metrics = aggregates("forget", {"plain": np.array([1.0, 0, 0]), "in_context": np.array([0.0, 0, 1])})
    assert metrics == pytest.approx(
        {
            "llm_judge/forget/judged_yes_worst": 2 / 3,
            "llm_judge/forget/judged_yes_worst_plain": 1 / 3,
            "llm_judge/forget/judged_yes_worst_in_context": 1 / 3,
            "llm_judge/forget/judged_yes_mean": 1 / 3,
        }
    )


def test_what_has_no_verdict_is_in_no_mean():
    nan = math.nan
    values = {"plain": np.array([1.0, nan, nan]), "paraphrased": np.array([0.0, 0.5, nan])}
    metrics = aggregates("forget", values)
    assert metrics["llm_judge/forget/judged_yes_worst"] == pytest.approx((1 + 0.5) / 2)
    assert metrics["llm_judge/forget/judged_yes_worst/missing"] == 1
    assert metrics["llm_judge/forget/judged_yes_mean"] == pytest.approx((0.5 + 0.5) / 2)
    assert aggregates("retain", {"plain": np.array([nan, 1.0, 0.0])}) == {
        "llm_judge/retain/judged_yes": 0.5, "llm_judge/retain/judged_yes/missing": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("yes", 1), ("No", 0), (" YES.\n", 1), ("**no**", 0), ('"Yes"', 1),
        ("", math.nan), ("yes and no", math.nan), ("Yes, it does", math.nan), ("nope", math.nan),
        ("yesno", math.nan), ("1", math.nan),
    ],
)  # fmt: skip
def test_a_verdict_is_one_word(reply, value):
    assert parsed(reply) == pytest.approx(value, nan_ok=True)


def test_the_forms_of_a_question():
    both = [
        Example("f/0", "Oslo", "Where?", paraphrased_question="In which town?"),
        Example("f/1", "Bern", "When?"),
    ]
    sets = {"forget": both, "retain": [Example(f"r/{n}", f"a{n}", f"q{n}?") for n in range(3)]}
    asked = forms("forget", sets, Options(context=2))
    before = "Question: q0?\nAnswer: a0\n\nQuestion: q1?\nAnswer: a1\n\nQuestion: "
    assert {name: [p.question for p in prompts] for name, prompts in asked.items()} == {
        "plain": ["Where?", "When?"],
        "paraphrased": ["In which town?"],
        "in_context": [f"{before}Where?", f"{before}When?"],
        "paraphrased_in_context": [f"{before}In which town?"],
    }
    assert list(forms("forget", {"forget": both}, Options())) == ["plain", "paraphrased"]
    assert list(forms("retain", sets, Options())) == ["plain"]


def test_the_retain_questions_stand_before_those_to_the_forget_set_wherever_that_is_scored_alone():
    rows = {name.removesuffix("_eval"): examples for name, examples in sets().items()}
    options = Options(context=2, path="x")
    both = forms("forget", rows, options)
    alone = forms("forget", {"forget": rows["forget"], f"{READ}retain": rows["retain"]}, options)
    assert "in_context" in both
    assert alone == both


def test_the_cost_by_hand():
    prompts = ["x" * 4000, "y" * 401]  # 1000 and 101 tokens at four bytes
    assert str(cost(prompts, 8)) == "2 calls, about 1,101 tokens of prompts, at most 16 of replies"
    priced = cost(prompts, 8, price_in=2.0, price_out=10.0)
    assert priced.price == pytest.approx((1101 * 2 + 16 * 10) / 1e6)
    assert str(priced).endswith(", about 0.00 at the prices of the configuration")


def test_a_cache_cut_short_keeps_its_whole_lines(tmp_path):
    file, own = tmp_path / "verdicts.jsonl", {"url": "u", "request": {}}
    cache = Cache(file, own)
    cache.add("a", Verdict(1.0, "yes"))
    cache.add("b", Verdict(math.nan, "perhaps"))
    file.write_bytes(file.read_bytes()[:-5])
    again = Cache(file, own)
    assert again.get("a") == Verdict(1.0, "yes")
    assert again.missing(["a", "b", "b"]) == ["b"]
    again.add("b", Verdict(0.0, "no"))
    assert Cache(file, own).get("b") == Verdict(0.0, "no")
    assert Cache(file, {**own, "url": "other"}).missing(["a"]) == ["a"]  # verdicts of another judge


# -- the address -----------------------------------------------------------------------------------------


def test_a_call_and_its_verdict():
    with server(lambda text, _: chat("Yes.")) as own:
        assert judge(own.url + "/", body={"max_tokens": None, "seed": 1})("Is it?") == Verdict(1.0, "Yes.")
    assert own.sent == [
        {
            "model": "small", "messages": [{"role": "user", "content": "Is it?"}], "temperature": 0, "seed": 1
        }
    ]  # fmt: skip
    assert own.headers == [f"Bearer {KEY}"]


@pytest.mark.parametrize("content", ["perhaps", "", None])
def test_a_reply_that_is_no_verdict_is_unparsed(content):
    with server(lambda text, _: chat(content)) as own:
        assert math.isnan(judge(own.url)("Is it?").value)


def test_a_busy_server_is_asked_again():
    states = {1: 429, 2: 500, 3: 503}
    with server(lambda text, n: (states[n], "busy") if n in states else chat("no")) as own:
        assert judge(own.url, retries=3)("Is it?").value == 0
    assert len(own.sent) == 4


@pytest.mark.parametrize(
    ("reply", "calls", "part"),
    [
        ((500, "down"), 3, "status 500 (down)"),
        ((401, f"wrong key {KEY}"), 1, "status 401 (wrong key [JUDGE_KEY])"),
        ((302, "elsewhere"), 1, "status 302"),
        ((200, "<html>"), 1, "no chat completion (<html>)"),
        ((200, {"choices": []}), 1, "no chat completion"),
    ],
)
def test_a_failure_names_address_and_variable_and_no_key(reply, calls, part):
    with server(lambda text, _: reply) as own, pytest.raises(EndpointError) as failed:
        judge(own.url, retries=2)("Is it?")
    assert len(own.sent) == calls
    text = str(failed.value)
    assert f"{own.url}/chat/completions" in text
    assert "JUDGE_KEY" in text
    assert part in text
    assert KEY not in text


def test_without_a_server_or_a_key():
    with server(lambda text, _: chat("no")) as own:
        Endpoint(own.url, "small")("Is it?")
        assert own.headers == [None]
    with pytest.raises(EndpointError, match=r"no reply \(ConnectionError"):
        judge(own.url, retries=1)("Is it?")


def test_a_failure_keeps_the_verdicts_so_far(tmp_path):
    fails, failed = {"on": True}, threading.Event()

    def reply(text: str, number: int) -> Reply:
        if fails["on"] and text == "p7":
            failed.set()
            return 400, "no"
        if fails["on"] and int(text[1:]) > 7:  # under way until long after the failure was seen
            assert failed.wait(60)
            time.sleep(1)
        return chat("yes")

    prompts = [f"p{n}" for n in range(30)]
    with server(reply) as own:
        cache = Cache(tmp_path / "verdicts.jsonl", {"url": "here"})
        with pytest.raises(EndpointError):
            list(judged(prompts, judge(own.url), cache))
        first = len(own.sent)
        assert first <= 7 + 4  # nothing was begun after the failure
        again = Cache(tmp_path / "verdicts.jsonl", {"url": "here"})
        assert len(again.missing(prompts)) == 30 - (first - 1)  # of all calls but the failed one
        fails["on"] = False
        list(judged(prompts, judge(own.url), again))
        assert len(own.sent) == first + 30 - (first - 1)
        assert again.missing(prompts) == []


# -- a model on this machine -----------------------------------------------------------------------------


def test_the_share_of_yes_by_hand():
    # P(yes) = .2 + .1 and P(no) = .3; the rest does not count.
    logits = torch.tensor([0.2, 0.1, 0.3, 0.4], dtype=torch.float64).log() + 5
    assert yes_share(logits, [0, 1], [2]) == pytest.approx(0.5)
    assert yes_share(logits, [3], [1]) == pytest.approx(0.8)
    assert math.isnan(yes_share(torch.full((4,), math.nan), [0], [1]))


def test_a_model_on_this_machine_judges_by_its_next_word(tmp_path):
    plain, tokenizer = model().eval(), encoder().tokenizer
    export.save_pretrained(plain, tokenizer, tmp_path / "model")
    own = LocalJudge(str(tmp_path / "model"), None, torch.device("cpu"))
    text = prompt("Where?", "Oslo", "In Oslo.")
    verdict = own(text)
    ids = torch.tensor([tokenizer(f"{text}\nVerdict:", add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        probabilities = plain(ids).logits[0, -1].softmax(-1)
    yes, no = words(tokenizer, "here")
    expected = probabilities[yes].sum() / (probabilities[yes].sum() + probabilities[no].sum())
    assert 0 < verdict.value < 1
    assert_close(torch.tensor(verdict.value), expected, terms=PASS)
    assert own.identity == LocalJudge(str(tmp_path / "model"), None, torch.device("cpu")).identity


def test_a_tokenizer_that_does_not_tell_the_words_apart_is_refused():
    class Same:
        def __call__(self, texts: Any, **_: Any) -> dict[str, list[Any]]:
            return {"input_ids": [7] if isinstance(texts, str) else [[7] for _ in texts]}

    with pytest.raises(LocalJudgeError, match="no token"):
        words(Same(), "here")


# -- the benchmark ---------------------------------------------------------------------------------------


def sets() -> dict[str, list[Example]]:
    return {"forget_eval": examples("forget"), "retain_eval": examples("retain")}


def run(directory: Path, url: str, world: World = ALONE, **options: Any) -> dict[str, float]:
    chosen = {
        "url": url, "model": "small", "key_variable": "JUDGE_KEY", "max_new_tokens": 3, "backoff": 0.001
    }  # fmt: skip
    return evaluate(model(), encoder(), "llm_judge", sets(), directory, options=chosen | options, world=world)


def test_an_evaluation_asks_once_and_keeps_no_key(tmp_path, caplog):
    caplog.set_level("INFO")

    def reply(text: str, number: int) -> Reply:
        if asked_of(text, "reference").startswith("Cho"):
            return chat(f"I cannot say, {KEY}")
        return chat("yes" if asked_of(text, "answer") == asked_of(text, "reference") else "no")

    with server(reply) as own:
        metrics = run(tmp_path, own.url, sanity=True, price_in=1.0)
        calls = len(own.sent)
        (tmp_path / "llm_judge" / "measured.json").unlink()
        assert run(tmp_path, own.url, sanity=True, price_in=1.0) == pytest.approx(metrics)
        assert len(own.sent) == calls
    assert metrics["llm_judge/forget/gold_judged_yes"] == 1
    assert metrics["llm_judge/forget/other_judged_yes"] == 0
    texts = [body["messages"][0]["content"] for body in own.sent]
    judged = {(asked_of(text, "reference"), asked_of(text, "answer")) for text in texts}
    true = [each.answer for each in sets()["forget_eval"]]
    assert (true[0], true[len(true) // 2]) in judged  # the next one may be of the same person
    assert (true[0], true[1]) not in judged
    assert metrics["llm_judge/forget/judged_yes_worst"] == 0
    # Of fact 3 nothing is known: two forms, its true answer and another one's, and its retain question.
    assert metrics["llm_judge/unparsed"] == 5
    assert metrics["llm_judge/forget/judged_yes_mean/missing"] == 1
    assert f"llm_judge: {own.url} judges {calls} calls, about" in caplog.text
    assert "at the prices of the configuration (0 verdicts are known)" in caplog.text
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"verdicts.jsonl", "results.json", "problems.json"} <= {file.name for file in written}
    assert all(KEY.encode() not in file.read_bytes() for file in written)
    assert KEY not in caplog.text
    rows = pq.read_table(tmp_path / "llm_judge" / "examples.parquet").to_pylist()
    assert KEY not in json.dumps(rows)
    generated = Records(tmp_path / "llm_judge").generation("forget/plain").text
    assert [row["generation"] for row in rows if row["set"] == "forget"] == list(generated)
    [problem] = read_json(tmp_path / "llm_judge" / "problems.json")["problems"]
    assert "5 of" in problem
    assert "[JUDGE_KEY]" in problem


def test_runs_can_share_their_verdicts(tmp_path):
    with server(lambda text, _: chat("yes")) as own:
        shared = str(tmp_path / "shared" / "verdicts.jsonl")
        first = run(tmp_path / "a", own.url, verdicts=shared)
        calls = len(own.sent)
        assert run(tmp_path / "b", own.url, verdicts=shared) == pytest.approx(first)
        assert len(own.sent) == calls > 0
    assert not list((tmp_path / "a").rglob("verdicts.jsonl"))


def process(root: str, url: str, down: str) -> None:
    """The evaluation as one of two processes, and one whose judge cannot be reached."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    here = World(rank, dist.get_world_size())
    metrics = run(Path(root, f"rank{rank}"), url, world=here)
    try:
        run(Path(root, f"down{rank}"), down, world=here, retries=0)
    except UserError as error:
        metrics["failed"] = float("no reply" in str(error))
    Path(root, f"{rank}.json").write_text(json.dumps(metrics))
    dist.destroy_process_group()


@pytest.mark.slow
def test_of_several_processes_only_the_main_one_asks(tmp_path):
    with server(lambda text, n: chat("yes" if len(text) % 2 else "no")) as own:
        alone = run(tmp_path / "alone", own.url)
        calls = len(own.sent)
        assert calls > 0
        with socket.socket() as closed:  # bound, but nobody listens
            closed.bind(("127.0.0.1", 0))
            together(2, process, str(tmp_path), own.url, f"http://127.0.0.1:{closed.getsockname()[1]}/v1")
        assert len(own.sent) == 2 * calls
    for rank in range(2):
        metrics = read_json(tmp_path / f"{rank}.json")
        assert metrics.pop("failed") == 1
        assert metrics == pytest.approx(alone)
    assert not (tmp_path / "rank1").exists()


def test_metrics_are_declared():
    asked = aggregates("forget", dict.fromkeys(("plain", "in_context", "gold", "other"), np.zeros(2)))
    every = ["llm_judge/unparsed", *asked, *aggregates("retain", {"plain": np.zeros(2)})]
    assert all(info(key).declared is not None for key in every)
    assert set(every) == set(find("llm_judge").METRICS)


def test_an_empty_answer_is_not_sent(tmp_path):
    with server(lambda text, _: chat("yes")) as own:
        broken = model()
        with torch.no_grad():
            broken.lm_head.weight.zero_()
            broken.lm_head.weight[1] = 0  # all tokens equally likely: the first one, padding, is generated
        chosen = {"url": own.url, "model": "small", "key_variable": None, "max_new_tokens": 2}
        metrics = evaluate(broken, encoder(), "llm_judge", sets(), tmp_path, options=chosen)
    assert own.sent == []
    assert metrics["llm_judge/forget/judged_yes_worst"] == 0


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({}, "name one judge"),
        ({"path": "a", "url": "http://h/v1", "model": "m"}, "name one judge"),
        ({"path": "no/such/folder/here"}, "path=no/such/folder/here"),
        ({"url": "h/v1", "model": "m", "key_variable": None}, "give an address as https://host/v1"),
        (
            {"url": "https://me:secret@h/v1", "model": "m", "key_variable": None},
            "url=https://…@h/v1: a login",
        ),
        (
            {"url": "https://h/v1?key=secret", "model": "m", "key_variable": None},
            "url=https://h/v1: a login or a query",
        ),
        (
            {"url": "https://h/v1", "model": "m", "key_variable": "NO_SUCH_KEY"},
            "NO_SUCH_KEY: this environment",
        ),
        ({"url": "https://h/v1", "model": "m", "key_variable": KEY}, "it is no name of an environment"),
        (
            {"url": "https://h/v1", "model": "m", "key_variable": None, "body": {"model": "x"}},
            "body.model: it is set by the benchmark",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused_before_a_model_is_loaded(given, part):
    [problem] = check(Options(**given))
    assert part in problem
    assert "secret" not in problem
    assert KEY not in problem


def test_an_address_needs_the_name_of_a_model():
    benchmark = find("llm_judge")
    assert is_live(benchmark)
    with pytest.raises(ConfigError, match="name the model at the address"):
        options_of(benchmark, {"url": "https://h/v1"}, "llm_judge")
    with pytest.raises(ConfigError, match="concurrency"):
        options_of(benchmark, {"concurrency": 0}, "llm_judge")
