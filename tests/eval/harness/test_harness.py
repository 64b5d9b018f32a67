"""The harness on a live model against the harness's own Hugging Face model, without a network."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from tests.paths import ROOT
from tests.tolerance import PASS, approx

pytest.importorskip("lm_eval", reason="needs the extra lm-eval")

from eval import harness
from eval.benchmark import find, is_live, options_of
from eval.benchmarks import general, wmdp
from eval.collection.live_model import Live
from eval.harness import HarnessError
from tests.eval.eval_fixtures import CITIES, NAMES, encoder, model
from unlearn.data.tokenization import Encoder
from unlearn.distributed import World
from unlearn.errors import ConfigError

# The shape of the library's own files: description, question and letters as in its WMDP and MMLU.
CHOICE = """
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}, dev: {data}}}
test_split: test
fewshot_split: dev
fewshot_config: {{sampler: first_n}}
output_type: multiple_choice
description: "The following are multiple choice questions (with answers) about towns.\\n\\n"
doc_to_text: "{{{{question.strip()}}}}\\nA. {{{{choices[0]}}}}\\nB. {{{{choices[1]}}}}\\n\
C. {{{{choices[2]}}}}\\nD. {{{{choices[3]}}}}\\nAnswer:"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1}}
"""
# Choices in words, of several tokens each.
WORDS = """
task: tiny_words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}} "
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - {{metric: acc}}
  - {{metric: acc_norm}}
  - {{metric: acc_mutual_info}}
"""
ROLLING = """
task: tiny_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{page}}}}"
metric_list:
  - {{metric: word_perplexity}}
  - {{metric: byte_perplexity}}
  - {{metric: bits_per_byte}}
"""
FREE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {{until: ["e"], max_gen_toks: 12, do_sample: {sampled}}}
metric_list:
  - {{metric: exact_match}}
filter_list:
  - name: none
    filter: [{{function: take_first}}]
  - name: first-word
    filter: [{{function: regex, regex_pattern: "(\\\\w+)"}}, {{function: take_first}}]
"""
LAST_WORD = """
task: tiny_last
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{question}}}}"
doc_to_target: " {{{{choices[0]}}}}"
metric_list:
  - {{metric: perplexity}}
  - {{metric: acc}}
"""
GROUP = """
group: tiny_group
task: [tiny_bio, tiny_cyber]
aggregate_metric_list:
  - {metric: acc, weight_by_size: true}
"""
TASKS = ("tiny_group", "tiny_words", "tiny_text", "tiny_free", "tiny_last")


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        import datasets

        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        patch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Task files and their data; the parts differ in size, so that a weighted mean is not a plain one."""
    made = tmp_path_factory.mktemp("tasks")
    questions: list[dict[str, Any]] = []
    for i, name in enumerate(NAMES):
        choices = [CITIES[(i + k) % len(CITIES)] for k in range(4)]
        questions.append({"question": f" Where was {name} born?", "choices": choices, "answer": i % 4})
    pages = [
        {"page": " ".join(f"{n} was born in {c}." for n, c in zip(NAMES[:k], CITIES[:k], strict=True))}
        for k in (1, 4, 11)
    ]
    for name, rows in {"bio": questions, "cyber": questions[:3], "pages": pages}.items():
        (made / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for part in ("bio", "cyber"):
        text = f"task: tiny_{part}\n" + CHOICE.format(data=made / f"{part}.jsonl")
        (made / f"{part}.yaml").write_text(text)
    (made / "words.yaml").write_text(WORDS.format(data=made / "bio.jsonl"))
    (made / "last.yaml").write_text(LAST_WORD.format(data=made / "bio.jsonl"))
    (made / "text.yaml").write_text(ROLLING.format(data=made / "pages.jsonl"))
    for name, sampled in (("tiny_free", "false"), ("tiny_sampled", "true")):
        text = FREE.format(name=name, data=made / "bio.jsonl", sampled=sampled)
        (made / f"{name}.yaml").write_text(text)
    (made / "group.yaml").write_text(GROUP)
    return made


def bounded(context: int) -> torch.nn.Module:
    """The small Llama with a context of so many tokens."""
    made = model()
    made.config.max_position_embeddings = context
    return made


def live(directory: Path, context: int = 400, own: Encoder | None = None) -> Live:
    return Live(bounded(context), own or encoder(), directory)


def theirs(
    our: Live, directory: Path, tasks: tuple[str, ...], include: Path, **options: Any
) -> dict[str, Any]:
    """What the harness itself gives on the same model, saved and loaded again."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    our.model.save_pretrained(directory)  # type: ignore[operator]
    our.encoder.tokenizer.save_pretrained(directory)
    loaded = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    their = HFLM(
        pretrained=loaded, tokenizer=AutoTokenizer.from_pretrained(directory), batch_size=4, device="cpu"
    )
    manager = TaskManager(include_path=str(include), include_defaults=False)
    evaluated = simple_evaluate(
        model=their, tasks=list(tasks), task_manager=manager, bootstrap_iters=0, **options
    )
    assert evaluated is not None
    return dict(evaluated)


def same(ours: harness.Outcome, found: dict[str, Any], task: str, names: dict[str, str]) -> None:
    for mine, key in names.items():
        assert ours.metrics[task][mine] == approx(found["results"][task][key], terms=PASS), (task, mine)


def compare(our: Live, directory: Path, folder: Path) -> harness.Outcome:
    found = theirs(our, directory, TASKS, folder)
    ours = harness.run_tasks(our, TASKS, include_path=str(folder))
    assert set(ours.metrics) == set(TASKS)  # the group's parts are summed up by it
    same(ours, found, "tiny_group", {"accuracy": "acc,none"})
    words = {"accuracy": "acc", "accuracy_norm": "acc_norm", "accuracy_mutual_info": "acc_mutual_info"}
    same(ours, found, "tiny_words", {key: f"{value},none" for key, value in words.items()})
    texts = ("word_perplexity", "byte_perplexity", "bits_per_byte")
    for name in texts:
        want = found["results"]["tiny_text"][f"{name},none"]
        assert math.log(ours.metrics["tiny_text"][name]) == approx(math.log(want), terms=PASS)
    same(ours, found, "tiny_free", {"exact_match": "exact_match,none"})
    same(ours, found, "tiny_free", {"exact_match/first-word": "exact_match,first-word"})
    same(ours, found, "tiny_last", {"accuracy": "acc,none"})
    return ours


def responses(our: Live, folder: Path, task: str, **options: Any) -> list[Any]:
    """Each request's first answer, as the harness gets it from our model."""
    from eval.harness.model import LiveLM

    return answers_of(LiveLM(our), folder, task, **options)


def answers_of(lm: Any, folder: Path, task: str, **options: Any) -> list[Any]:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    evaluated = simple_evaluate(model=lm, tasks=[task], task_manager=manager, bootstrap_iters=0, **options)
    assert evaluated is not None
    return [answer[0] for sample in evaluated["samples"][task] for answer in sample["resps"]]


@pytest.mark.slow
def test_metrics_are_those_of_the_harness_on_its_own_model(tmp_path: Path, folder: Path) -> None:
    ours = compare(live(tmp_path), tmp_path / "model", folder)
    # 11 examples in one part and 3 in the other, weighted by size: a multiple of 1/14.
    assert (ours.metrics["tiny_group"]["accuracy"] * 14) % 1 == pytest.approx(0, abs=1e-9)
    assert ours.problems == []


@pytest.mark.slow
def test_prompts_longer_than_the_context_lose_their_start_as_in_the_harness(
    tmp_path: Path, folder: Path
) -> None:
    """The choice prompts have some 110 tokens, the longest page several hundred."""
    ours = compare(live(tmp_path, context=60), tmp_path / "model", folder)
    (problem,) = ours.problems
    assert problem.endswith("exceeded the model's context of 60 tokens and lost their start")


@pytest.mark.slow
def test_log_likelihoods_and_texts_are_those_of_the_harness(tmp_path: Path, folder: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    our = live(tmp_path)
    our.model.save_pretrained(tmp_path / "model")  # type: ignore[operator]
    our.encoder.tokenizer.save_pretrained(tmp_path / "model")
    their = HFLM(pretrained=str(tmp_path / "model"), batch_size=3, device="cpu", dtype="float32")
    for task in ("tiny_bio", "tiny_words", "tiny_text"):
        mine, others = responses(our, folder, task), answers_of(their, folder, task)
        logp = [[a[0] if isinstance(a, tuple) else a for a in each] for each in (mine, others)]
        assert logp[0] == approx(logp[1], terms=PASS)
        greedy = [[a[1] for a in each if isinstance(a, tuple)] for each in (mine, others)]
        assert greedy[0] == greedy[1]
    assert responses(our, folder, "tiny_free") == answers_of(their, folder, "tiny_free")
    # 12 new tokens leave room for 4 of a question.
    tight, their_tight = (
        live(tmp_path, context=16),
        HFLM(pretrained=their.model, tokenizer=their.tokenizer, batch_size=3, device="cpu", max_length=16),
    )
    cut = responses(tight, folder, "tiny_free")
    assert cut == answers_of(their_tight, folder, "tiny_free")
    assert cut != responses(our, folder, "tiny_free")
    with_examples: dict[str, Any] = {"num_fewshot": 2, "task": "tiny_bio"}
    mine, others = (
        answers(lm, folder, **with_examples) for lm, answers in ((our, responses), (their, answers_of))
    )
    assert [a[0] for a in mine] == approx([a[0] for a in others], terms=PASS)


@pytest.mark.slow
def test_special_tokens_and_chat_template_as_in_the_harness(tmp_path: Path, folder: Path) -> None:
    """A tokenizer that begins every text by itself, and a template that begins it too: it begins once."""
    from lm_eval.models.huggingface import HFLM
    from tokenizers.processors import TemplateProcessing

    own = encoder()
    own.tokenizer.add_special_tokens({"bos_token": "<|pad|>"})
    own.tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<|pad|> $A", special_tokens=[("<|pad|>", own.tokenizer.pad_token_id)]
    )
    own.tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    our = live(tmp_path, own=own)
    our.model.save_pretrained(tmp_path / "model")  # type: ignore[operator]
    own.tokenizer.save_pretrained(tmp_path / "model")
    their = HFLM(pretrained=str(tmp_path / "model"), batch_size=3, device="cpu", dtype="float32")
    begin = own.tokenizer.bos_token_id
    from eval.harness.model import LiveLM

    lm = LiveLM(our)
    for text in ("Where?", "<|pad|>Where?", ""):
        assert lm.tok_encode(text) == their.tok_encode(text)
    assert lm.tok_encode("Where?")[0] == begin
    assert lm.tok_encode("<|pad|>Where?").count(begin) == 1
    assert lm._encode_pair("Where was Ada ", "born") == their._encode_pair("Where was Ada ", "born")
    for task in ("tiny_bio", "tiny_text"):
        plain = [answers(x, folder, task) for x, answers in ((our, responses), (their, answers_of))]
        values = [[a[0] if isinstance(a, tuple) else a for a in each] for each in plain]
        assert values[0] == approx(values[1], terms=PASS)
    options = {"apply_chat_template": True, "num_fewshot": 1}
    mine, others = (
        responses(our, folder, "tiny_bio", **options),
        answers_of(their, folder, "tiny_bio", **options),
    )
    assert [a[0] for a in mine] == approx([a[0] for a in others], terms=PASS)
    found = harness.run_tasks(our, ["tiny_bio"], include_path=str(folder), chat_template=True, limit=1)
    assert "[user] Where was Ada born?" in found.rows[0]["question"]


def test_learned_positions_take_as_many_tokens_as_there_are(tmp_path: Path, folder: Path) -> None:
    """A position beyond the context does not exist here: one token too many would be an error."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=400, n_embd=32, n_layer=1, n_head=2, n_positions=48, initializer_range=0.3
        )
        our = Live(GPT2LMHeadModel(config), encoder(), tmp_path)
    found = theirs(our, tmp_path / "model", ("tiny_text",), folder)
    ours = harness.run_tasks(our, ["tiny_text"], include_path=str(folder))
    same(ours, found, "tiny_text", {"bits_per_byte": "bits_per_byte,none"})


def test_rows_tell_question_answer_and_prediction(tmp_path: Path, folder: Path) -> None:
    found = harness.run_tasks(live(tmp_path), TASKS, include_path=str(folder), limit=2)
    assert len({tuple(row) for row in found.rows}) == 1  # the same columns in every row
    rows = {row["id"]: row for row in found.rows}
    assert len(rows) == len(found.rows) == 2 * 6  # two parts of the group and four tasks
    choice = rows["tiny_bio/1"]
    assert choice["answer"] == "B"
    assert choice["prediction"] in "ABCD"
    assert choice["accuracy"] == float(choice["prediction"] == "B")
    assert choice["question"] == (
        "The following are multiple choice questions (with answers) about towns.\n\nWhere was Bela born?\n"
        "A. Quito\nB. Lagos\nC. Split\nD. Kyoto\nAnswer:"
    )
    words = rows["tiny_words/1"]
    assert words["answer"] == CITIES[2]  # the choices begin at CITIES[1], and number 1 is right
    assert words["prediction"] in CITIES
    assert rows["tiny_text/0"]["question"] == "Ada was born in Oslo."
    assert rows["tiny_text/0"]["logp"] < 0
    assert rows["tiny_text/0"]["prediction"] is None
    free = rows["tiny_free/0"]
    assert "e" not in free["prediction"]
    assert {"exact_match", "exact_match/first-word"} <= set(free)
    assert math.isnan(free["accuracy"])
    again = harness.run_tasks(live(tmp_path), TASKS, include_path=str(folder), limit=2)
    assert again.metrics == found.metrics


def test_a_collapsed_model_is_measured(tmp_path: Path, folder: Path) -> None:
    """Logits of a million: a perplexity beyond any float is the largest one, and NaN is never an accuracy."""
    our = live(tmp_path)
    with torch.no_grad():
        our.model.lm_head.weight.mul_(1e6)  # type: ignore[union-attr,operator]
    found = harness.run_tasks(our, ["tiny_text"], include_path=str(folder))
    assert found.metrics["tiny_text"]["word_perplexity"] == sys.float_info.max
    with torch.no_grad():
        our.model.lm_head.weight.fill_(math.nan)  # type: ignore[union-attr,operator]
    result = general.measure(
        our, {}, general.Options(tasks=("tiny_group", "tiny_words"), include_path=str(folder), limit=3)
    )
    assert math.isnan(result.metrics["general/tiny_group/accuracy"])
    assert math.isnan(result.metrics["general/accuracy"])
    assert all(math.isnan(row["accuracy"]) and row["prediction"] is None for row in result.examples)
    assert any("tiny_bio: the model gives NaN for 3 of 3 examples" in problem for problem in result.problems)


def test_the_generators_of_training_are_left_as_they_were(tmp_path: Path, folder: Path) -> None:
    torch.manual_seed(5)
    random.seed(5)
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)
    harness.run_tasks(live(tmp_path), ["tiny_cyber"], include_path=str(folder), fewshot=1)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert random.getstate() == before[1]
    assert str(np.random.get_state(legacy=False)) == str(before[2])


def test_what_a_model_here_cannot_give_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(HarnessError, match=r"tiny_sampled asks for sampled answers \(do_sample\)"):
        harness.run_tasks(live(tmp_path), ["tiny_sampled"], include_path=str(folder))
    with pytest.raises(HarnessError, match="answers of 12 tokens, but the model's context has 12"):
        harness.run_tasks(live(tmp_path, context=12), ["tiny_free"], include_path=str(folder))
    with pytest.raises(HarnessError, match="tokenizer has no chat template"):
        harness.run_tasks(live(tmp_path), ["tiny_bio"], include_path=str(folder), chat_template=True)
    with pytest.raises(HarnessError, match="Duplicate task 'tiny_bio'"):
        harness.run_tasks(live(tmp_path), ["tiny_group", "tiny_bio"], include_path=str(folder))
    (folder / "absent").mkdir(exist_ok=True)
    (folder / "absent" / "absent.yaml").write_text(
        "task: tiny_absent\n" + CHOICE.format(data=folder / "absent.jsonl")
    )
    with pytest.raises(
        HarnessError, match=r"cannot load the tasks \(tiny_absent\): .*absent.jsonl.*; start again"
    ):
        harness.run_tasks(live(tmp_path), ["tiny_absent"], include_path=str(folder / "absent"))


def test_general_keys(tmp_path: Path, folder: Path) -> None:
    options = options_of(
        find("general"),
        {"tasks": ["tiny_group", "tiny_words", "tiny_text"], "include_path": str(folder)},
        "general",
    )
    assert general.check(options) == []
    result = general.measure(live(tmp_path), {}, options)
    accuracies = [result.metrics[f"general/{task}/accuracy"] for task in ("tiny_group", "tiny_words")]
    assert result.metrics["general/accuracy"] == pytest.approx(sum(accuracies) / 2)
    assert result.metrics["general/tiny_text/word_perplexity"] > 1
    assert not any("stderr" in key or "," in key for key in result.metrics)


def test_wmdp_keys_with_files_in_the_place_of_the_librarys(tmp_path: Path, folder: Path) -> None:
    named = {"bio": "tiny_bio", "cyber": "tiny_cyber", "mmlu": "tiny_words"}
    given = {"parts": ["bio", "cyber"], "tasks": named, "include_path": str(folder)}
    options = options_of(find("wmdp"), given, "wmdp")
    assert wmdp.check(options) == []
    result = wmdp.measure(live(tmp_path), {}, options)
    found = harness.run_tasks(live(tmp_path), list(named.values()), include_path=str(folder))
    assert result.metrics == {
        "wmdp/bio/accuracy": found.metrics["tiny_bio"]["accuracy"],
        "wmdp/cyber/accuracy": found.metrics["tiny_cyber"]["accuracy"],
        "mmlu/accuracy": found.metrics["tiny_words"]["accuracy"],
    }
    without = wmdp.measure(
        live(tmp_path),
        {},
        options.model_copy(update={"parts": ("bio",), "tasks": {"bio": "tiny_text"}, "mmlu": False}),
    )
    assert math.isnan(without.metrics["wmdp/bio/accuracy"])
    assert without.problems == ["wmdp/bio/accuracy: the task tiny_text has no metric acc"]


def test_options_that_cannot_be(tmp_path: Path) -> None:
    for name in ("general", "wmdp"):
        assert is_live(find(name))
        with pytest.raises(ConfigError, match="limit=0"):
            options_of(find(name), {"limit": 0}, name)
        with pytest.raises(ConfigError, match="fewshot=-1"):
            options_of(find(name), {"fewshot": -1}, name)
    with pytest.raises(ConfigError, match="name at least one task"):
        options_of(find("general"), {"tasks": []}, "general")
    with pytest.raises(ConfigError, match=r"no part 'chemistry' \(did you mean chem\?\)"):
        options_of(find("wmdp"), {"parts": ["chemistry"]}, "wmdp")
    with pytest.raises(ConfigError, match="nothing is left"):
        options_of(find("wmdp"), {"parts": [], "mmlu": False}, "wmdp")
    (problem,) = general.check(general.Options(include_path=str(tmp_path / "nowhere")))
    assert problem == f"include_path={tmp_path / 'nowhere'}: there is no such folder"


@pytest.mark.slow
def test_the_librarys_names_are_found_without_its_index() -> None:
    asked = (*general.Options().tasks, *wmdp.Options().asked.values(), "gsm8k", "ifeval", "triviaqa")
    before = harness.lookup.task_manager.cache_info().currsize
    assert harness.problems(asked, None) == []
    assert harness.lookup.task_manager.cache_info().currsize == before


def test_without_the_package_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # what an import of an absent package finds
    (problem,) = wmdp.check(wmdp.Options())
    assert problem == "the package lm_eval is not installed: pip install 'unlearn-lab[lm-eval]'"


@pytest.mark.slow
def test_benchmarks_are_listed_without_the_package() -> None:
    code = (
        "import sys; sys.modules['lm_eval'] = None; from eval.benchmark import find; "
        "find('general'), find('wmdp'); assert 'datasets' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.slow
def test_a_local_file_goes_before_the_librarys(tmp_path: Path, folder: Path) -> None:
    """A local `wmdp_bio`, asked together with a group of the library: the index of both is read."""
    (tmp_path / "tasks").mkdir()
    text = "task: wmdp_bio\n" + CHOICE.format(data=folder / "cyber.jsonl")
    (tmp_path / "tasks" / "bio.yaml").write_text(text)
    index = harness.manager(["wmdp_bio", "mmlu"], str(tmp_path / "tasks"))
    assert "mmlu" in index.all_groups
    assert index.load(["wmdp_bio"])["tasks"]["wmdp_bio"].config.dataset_path == "json"
    result = wmdp.measure(
        live(tmp_path), {}, wmdp.Options(parts=("bio",), mmlu=False, include_path=str(tmp_path / "tasks"))
    )
    assert len(result.examples) == 3


def process(rank: int, world: int, root: str, folder: str) -> None:
    torch.set_num_threads(1)
    # As launchers set it; the harness's own entry point gives results where it is 0 and nothing elsewhere.
    os.environ["LOCAL_RANK"] = str(rank)
    os.environ["HF_DATASETS_CACHE"] = f"{root}/cache"
    dist.init_process_group("gloo", rank=rank, world_size=world, init_method=f"file://{root}/meet")
    our = replace(
        live(Path(root)), world=World(rank, world, collective_forward=True), max_tokens=600, max_rows=3
    )
    found = harness.run_tasks(our, TASKS, include_path=folder, limit=5)
    refusal = ""
    try:  # only one process lacks the data
        harness.run_tasks(our, ["tiny_lost"], include_path=f"{root}/{rank}")
    except HarnessError as error:
        refusal = str(error)
    Path(root, f"{rank}.json").write_text(json.dumps([found.metrics, found.rows, refusal]))
    dist.destroy_process_group()
