"""Stand-in answers: which an example gets, from which file, and those sampled from a model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from tests.paths import SHARED
from tests.worlds import together
from unlearn.config import AlternativesConfig, DatasetConfig, NanoConfig
from unlearn.data.alternatives import alternatives, check, draw, identity, read_answers, refusals
from unlearn.data.example import Example
from unlearn.data.sources import load_sets
from unlearn.data.tokenization import Encoder
from unlearn.distributed import ALONE, World
from unlearn.errors import UserError
from unlearn.models import nano
from unlearn.passes.generate import generate
from unlearn.training import sampled_alternatives

FORGET = [Example(id=f"forget/{i}", question=f"who {i}?", answer=f"me {i}") for i in range(40)]
RETAIN = [Example(id=f"retain/{i}", question=f"where {i}?", answer=f"there {i}") for i in range(30)]
CPU = torch.device("cpu")


def config(**options: object) -> AlternativesConfig:
    return AlternativesConfig.model_validate(options)


def words(text: str) -> str:
    return " ".join("".join(c if c.isalpha() else " " for c in text.lower().replace("’", "'")).split())


def test_refusals_are_many_distinct_first_person_sentences() -> None:
    found = refusals()
    assert len(found) >= 60
    assert len({words(line) for line in found}) == len(found)
    assert all(line.startswith("I ") and line.endswith(".") and len(line) < 80 for line in found)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no shared data at {SHARED} (UNLEARN_SHARED)")
def test_refusals_are_not_those_of_tofu() -> None:
    theirs = {words(line) for line in (SHARED / "data" / "idontknow.txt").read_text("utf-8").split("\n")}
    assert not theirs & {words(line) for line in refusals()}


@pytest.mark.parametrize("source", ["refusals", "mismatch"])
def test_answers_follow_from_seed_and_id_alone(source: str) -> None:
    cfg = config(source=source)
    found = alternatives(cfg, FORGET, pool=RETAIN, seed=3)
    assert alternatives(cfg, FORGET[::-1], pool=RETAIN[::-1], seed=3) == found[::-1]
    assert alternatives(cfg, FORGET[7:8], pool=RETAIN, seed=3) == found[7:8]
    assert alternatives(cfg, FORGET, pool=RETAIN, seed=4) != found
    assert len({tuple(own) for own in found}) > 30  # nearly each example has its own


def test_another_process_draws_the_same() -> None:
    code = (
        "from unlearn.data.alternatives import draw\n"
        "import json; print(json.dumps(draw([str(i) for i in range(99)], 20, 'key')))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(out) == draw([str(i) for i in range(99)], 20, "key")


def test_none_repeats_while_there_is_another() -> None:
    for own in alternatives(config(count=len(refusals())), FORGET, pool=[], seed=0):
        assert sorted(own) == refusals()
    # 7 out of 3 lines: two whole rounds and one more.
    own = draw(["a", "b", "c"], 7, "key")
    assert sorted(own[:3]) == sorted(own[3:6]) == ["a", "b", "c"]
    # Without "b" two lines are left, so a round is two long.
    own = draw(["a", "b", "c"], 4, "key", exclude={"b", "not a line"})
    assert sorted(own[:2]) == sorted(own[2:]) == ["a", "c"]
    assert draw(["b"], 4, "key", exclude={"b"}) == draw([], 4, "key") == []


def test_every_line_is_as_likely_at_every_place() -> None:
    # 3000 draws of 2 of 5 lines: 600 expected at each place, standard deviation √(3000·0.2·0.8) ≈ 22.
    draws = [draw(list("abcde"), 2, f"key {i}") for i in range(3000)]
    for place in (0, 1):
        counts = Counter(own[place] for own in draws)
        assert len(counts) == 5
        assert all(abs(count - 600) < 4 * 22 for count in counts.values())
    # Pairs: 20 ordered ones, 150 expected, √(3000·0.05·0.95) ≈ 12.
    pairs = Counter(map(tuple, draws))
    assert len(pairs) == 20
    assert all(abs(count - 150) < 4 * 12 for count in pairs.values())


def test_mismatch_is_never_an_answer_to_the_same_question() -> None:
    pool = [
        Example(id="retain/0", question="who?", answer="Ann"),
        Example(id="retain/1", question="who?", answer="A. Ünal"),
        Example(id="retain/2", question="where?", answer=" Ann "),
        Example(id="retain/3", question="when?", answer="Today"),
        Example(id="retain/4", answer="A plain text."),
    ]
    # Ann is right however it is written around, A. Ünal answers the same question: Today is left.
    assert alternatives(config(source="mismatch", count=2), pool[:1], pool=pool, seed=0) == [["Today"] * 2]
    (own,) = alternatives(config(source="mismatch", count=3), pool[3:4], pool=pool, seed=0)
    assert set(own) == {"Ann", "A. Ünal"}
    text = Example(id="forget/0", answer="To forget.")
    assert alternatives(config(source="mismatch", count=1), [text], pool=pool, seed=0) == [["A plain text."]]


def test_mismatch_without_others() -> None:
    for pool, message in (
        ([], r"method\.alternatives\.source=mismatch: the retain set has no questions .* dataset\.retain"),
        ([Example(id="r/0", question="?", answer="me 0")], r"no answer for forget/0 except its own"),
        ([Example(id="r/0", answer="A text.")], "the retain set has no questions"),
    ):
        with pytest.raises(UserError, match=message):
            alternatives(config(source="mismatch"), FORGET[:1], pool=pool, seed=0)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "\ufeffone\n\n two \r\nthree\u2028four\none\n"),
        ("a.json", '["one", {"answer": "two"}, {"text": "three\u2028four"}]'),
        ("a.jsonl", '"one"\n\n{"answer": " two"}\n{"text": "three\u2028four", "more": 1}\n'),
    ],
)
def test_answers_of_a_file(name: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(text.encode())
    assert read_answers(file) == ["one", "three\u2028four", "two"]
    for source in ("refusals", "mismatch"):
        cfg = config(source=source, path=str(file), count=3)
        assert check(cfg) == []
        for own in alternatives(cfg, FORGET, pool=RETAIN, seed=0):
            assert sorted(own) == ["one", "three\u2028four", "two"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", " \n\n", "the file has no answers; write one per line"),
        ("a.json", "[]", "the file has no rows"),
        ("a.json", '["a", 3]', "row 1: expected a JSON object, found the number 3"),
        ("a.jsonl", '{"question": "a"}', r"row 0 \(line 1\): column 'answer' is missing \(columns: question"),
        ("a.jsonl", "I don't know.\n", r"line 1: not JSON"),
        ("a.txt", "caf\udce9", "line 1: not text in UTF-8"),
        ("a.csv", "answer\nx\n", r"cannot read \.csv \(can: \.txt with one answer per line"),
    ],
)
def test_files_that_hold_no_answers(name: str, text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=message) as raised:
        alternatives(config(path=str(file)), FORGET, pool=[], seed=0)
    assert str(raised.value).startswith(f"method.alternatives.path={file}")
    assert check(config(path=str(file))) == [str(raised.value)]


def test_file_that_is_not_there(tmp_path: Path) -> None:
    cfg = config(source="mismatch", path=str(tmp_path / "gone.txt"))
    with pytest.raises(UserError, match=r"method\.alternatives\.path=.*gone\.txt: there is no such file"):
        alternatives(cfg, FORGET, pool=RETAIN, seed=0)
    assert len(check(cfg)) == 1
    assert check(config(source="column", path="gone.txt")) == []  # the path is not read


def test_identity_follows_the_content_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n")
    (tmp_path / "b.txt").write_text("one\n")
    (tmp_path / "c.txt").write_text("two\n")
    a, b, c = (identity(config(path=str(tmp_path / f"{name}.txt"))) for name in "abc")
    assert a == b != c
    assert "file" in identity(config())
    assert identity(config(source="mismatch")) == {"source": "mismatch", "count": 5}
    assert identity(config(source="sampled")) != identity(config(source="sampled", temperature=0.5))
    assert identity(config(source="column")) == identity(config(source="column", temperature=0.5))


def test_column_template_of_ones_own_data(tmp_path: Path) -> None:
    rows = [{"question": "who?", "answer": "me", "template": "Nobody."}, {"text": "long", "template": "x"}]
    (tmp_path / "f.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    (tmp_path / "r.jsonl").write_text('{"question": "who?", "answer": "me", "mine": "Other."}\n')
    cfg = DatasetConfig(
        name="custom", source="custom", path=str(tmp_path), forget="f.jsonl", retain="r.jsonl"
    )
    sets = load_sets(cfg, ["forget", "retain"])
    wanted = [["Nobody.", "Nobody."], ["x", "x"]]
    assert alternatives(config(source="column", count=2), sets["forget"], pool=[], seed=0) == wanted
    with pytest.raises(
        UserError, match=r"source=column: r/0 has no text in the column template; fill that column"
    ):
        alternatives(config(source="column"), sets["retain"], pool=[], seed=0)
    renamed = cfg.model_copy(update={"options": {"columns": {"template": "mine"}}})
    assert [e.template for e in load_sets(renamed, ["retain"])["retain"]] == ["Other."]
    (tmp_path / "r.jsonl").write_text('{"question": "who?", "answer": "me", "template": 3}\n')
    with pytest.raises(UserError, match="column 'template' holds the number 3, but must be a text"):
        load_sets(cfg, ["retain"])


# -- sampled -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(nano_tokenizer: PreTrainedTokenizerBase) -> Encoder:
    return Encoder(nano_tokenizer)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return build_model()


def build_model() -> LlamaForCausalLM:
    shape = nano.config(NanoConfig(hidden_size=32, layers=2, heads=2))
    shape.tie_word_embeddings, shape.initializer_range = False, 0.3  # far from uniform, and no echo
    with nano.seeded(0):
        return LlamaForCausalLM(shape)


QUESTIONS = ["Who is Ann?", "Where was she born, and in which year of which century?", "Why?", "日本 🙂?"]


def sample(model: LlamaForCausalLM, encoder: Encoder, questions: list[str], **changed: object):
    options: dict = {
        "count": 3, "temperature": 1.0, "max_new_tokens": 40, "seed": 0, "world": ALONE, "max_rows": 64,
        "device": CPU,
    }  # fmt: skip
    return sampled_alternatives.sample_alternatives(model, encoder, questions, **options | changed)


@pytest.mark.slow
def test_samples_do_not_depend_on_batches_or_order(model: LlamaForCausalLM, encoder: Encoder) -> None:
    found = sample(model, encoder, QUESTIONS)
    assert [len(own) for own in found] == [3] * 4
    assert all(text.strip() for own in found for text in own)
    assert len({text for own in found for text in own}) == 12
    for rows in (1, 5):
        assert sample(model, encoder, QUESTIONS, max_rows=rows) == found
    assert sample(model, encoder, QUESTIONS[::-1]) == found[::-1]
    assert sample(model, encoder, QUESTIONS[2:3]) == found[2:3]
    assert sample(model, encoder, QUESTIONS[:1] * 2) == found[:1] * 2
    assert [own[:2] for own in found] == sample(model, encoder, QUESTIONS, count=2)
    assert sample(model, encoder, QUESTIONS, seed=1) != found
    assert sample(model, encoder, []) == []


@pytest.mark.slow
def test_samples_of_a_killed_process_are_kept_in_portions(model, encoder, tmp_path):
    whole = sample(model, encoder, QUESTIONS)
    calls: list[int] = []

    def kill(*_: object) -> None:
        calls.append(1)
        if len(list(tmp_path.iterdir())) == 2:
            raise KeyboardInterrupt

    hook = model.register_forward_pre_hook(kill)
    with pytest.raises(KeyboardInterrupt):  # twelve samples in portions of four
        sample(model, encoder, QUESTIONS, max_rows=1, parts=tmp_path)
    hook.remove()
    before = len(calls)
    hook = model.register_forward_pre_hook(lambda *_: calls.append(1))
    assert sample(model, encoder, QUESTIONS, max_rows=1, parts=tmp_path) == whole
    hook.remove()
    assert 0 < len(calls) - before < before


def sample_in_process(root: str) -> None:
    dist.init_process_group("gloo")
    rank, encoder, found = dist.get_rank(), Encoder(nano.tokenizer(1536)), []
    for collective_forward in (False, True):
        world = World(rank, dist.get_world_size(), collective_forward=collective_forward)
        found.append(sample(build_model(), encoder, QUESTIONS, world=world, max_rows=4))
    Path(root, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.mark.slow  # starts processes
def test_several_processes_sample_as_one(tmp_path: Path, model: LlamaForCausalLM, encoder: Encoder) -> None:
    together(2, sample_in_process, str(tmp_path))
    alone = sample(model, encoder, QUESTIONS)
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == [alone] * 2


def test_cold_samples_are_greedy(model: LlamaForCausalLM, encoder: Encoder) -> None:
    greedy = generate(
        model, encoder.prompts(QUESTIONS), max_new_tokens=40, end_ids=[encoder.end_id], pad_id=0,
        max_rows=2, world=ALONE, device=CPU,
    )  # fmt: skip
    texts = [str(encoder.tokenizer.decode(row, skip_special_tokens=True)).strip() for row in greedy]
    assert sample(model, encoder, QUESTIONS, temperature=1e-6, count=2) == [[text] * 2 for text in texts]


def test_training_mode_is_left_as_it_was(model: LlamaForCausalLM, encoder: Encoder) -> None:
    model.train()
    sample(model, encoder, ["Why?"], max_new_tokens=2)
    assert model.training
    model.eval()


def test_an_empty_answer_is_sampled_again(model: LlamaForCausalLM, encoder: Encoder) -> None:
    # All but two tokens end an answer, so nearly every one is empty again and again: refusals stand in.
    own = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = list(range(2, 1536))
    found = sample(model, encoder, QUESTIONS)
    assert all(text in refusals() for texts in found for text in texts)
    # Half of the tokens end it: some first samples are empty, but hardly any four in a row.
    model.generation_config.eos_token_id = list(range(0, 1536, 2))
    found = sample(model, encoder, QUESTIONS, count=8, temperature=20.0)
    model.generation_config.eos_token_id = own
    texts = [text for texts in found for text in texts]
    assert all(text.strip() for text in texts)
    # 32 samples, each still empty after four tries with chance 1/16 (and a few are white space): mean 2.
    assert 0 <= sum(text in refusals() for text in texts) < 9


def test_cache_knows_what_the_samples_depend_on(tmp_path: Path, encoder: Encoder) -> None:
    def file(model: str = "key", dtype: str = "fp32", questions: list[str] = QUESTIONS, **changed: object):
        options: dict = {"count": 3, "temperature": 1.0, "max_new_tokens": 40, "seed": 0}
        return sampled_alternatives.cache_file(
            tmp_path, model, dtype, encoder, questions, **options | changed
        )

    first = file()
    assert first.parent == tmp_path / "cache" / "alternatives"
    assert file(questions=QUESTIONS[::-1]) == file(questions=QUESTIONS * 2) == first
    assert file(temperature=1) == first
    others = {
        file("other"), file(dtype="bf16"), file(questions=QUESTIONS[1:]), file(count=4), file(seed=1),
        file(temperature=0.5), file(max_new_tokens=41),
    }  # fmt: skip
    assert len(others | {first}) == 8
    answers = [[f"{question} {k}" for k in range(3)] for question in QUESTIONS]
    assert sampled_alternatives.read(first, QUESTIONS) is None
    sampled_alternatives.write(first, QUESTIONS, answers)
    assert sampled_alternatives.read(first, QUESTIONS) == answers
    assert sampled_alternatives.read(first, QUESTIONS[::-1]) == answers[::-1]
    assert sampled_alternatives.read(first, ["Other?"]) is None
    assert [each.name for each in first.parent.iterdir()] == [first.name]
    first.write_text(first.read_text()[:30])
    assert sampled_alternatives.read(first, QUESTIONS) is None
