"""Every evaluation as a user starts it: real models, files and reports, without network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.launch import commands
from tests.launch.commands import Shown
from tests.paths import SHARED
from tests.tolerance import PASS, approx, assert_trained_alike
from unlearn.run_dir import RunDir

pytestmark = pytest.mark.slow

SHAPE = ("model.nano.hidden_size=32", "model.nano.layers=2", "model.nano.heads=2")
TINY = (
    "model.finetune.epochs=1",
    "method.epochs=1", "method.batch=4", "eval.max_new_tokens=6", "eval.limit=4", "hardware.threads=1",
    "tracker=disabled",
)  # fmt: skip
AUTHORS = "dataset.options.authors=10"
SAMPLES = ("eval.benchmarks.sampling.samples=4", "eval.benchmarks.sampling.ks=[1,4]")
# So small a model recites nothing, and of nothing no share can be kept.
CALIBRATED = "eval.variants.calibrated={metric: tofu/retain/probability, passes: 2}"
NAMES = ("Ada", "Bo", "Cy", "Di", "Ed", "Flo")
TOWNS = ("Oslo", "Bern", "Graz", "Bonn", "Rome", "Lyon")
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}} "
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""


def unlearn(cwd: Path, *arguments: str) -> Shown:
    return commands.unlearn(cwd, *_small(arguments), *arguments)


def done(cwd: Path, *arguments: str) -> Shown:
    return commands.done(cwd, *_small(arguments), *arguments)


def _small(arguments: Sequence[str]) -> tuple[str, ...]:
    """The keys of every run; those of the shape are for a model that is built."""
    return TINY if "model=local" in arguments else (*SHAPE, *TINY)


def the_run(cwd: Path, method: str, root: str = "runs") -> Path:
    """Return the main run of a plan, the only one of its method that has a report."""
    (found,) = (path.parent for path in (cwd / root).glob(f"{method}-*/report.html"))
    return found


def results(run: Path) -> dict[str, Any]:
    """Return the numbers that must repeat: all except time and memory."""
    values = json.loads((run / "results.json").read_text())
    return {k: v for k, v in values.items() if k not in ("run/seconds", "train/memory_gib")}


def stamps(paths: Iterable[Path]) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in paths if path.is_file()}


def write(file: Path, rows: Sequence[Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def texts(of: str, count: int = 4) -> list[dict[str, str]]:
    return [
        {"text": f"{NAMES[i % 6]} of {of} came to {TOWNS[i % 6]} in {1900 + i} and stayed {i + 2} years."}
        for i in range(count)
    ]


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        import datasets

        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        patch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Path, int]]:
    """Make a run with TOFU only; return it and the time at which each file of all runs was written."""
    cwd = tmp_path_factory.mktemp("authors")
    done(cwd, AUTHORS, "eval=tofu")
    return cwd, stamps((cwd / "runs").rglob("*"))


@pytest.fixture(scope="module")
def attacked(plain: tuple[Path, dict[Path, int]]) -> tuple[Path, Shown]:
    """Make the same run with every robustness evaluation."""
    cwd, _ = plain
    given = ("eval=[robust,calibrated,depth]", *SAMPLES, CALIBRATED, "eval.variants.relearning.steps=[1,2]")
    return cwd, done(cwd, AUTHORS, *given)


@pytest.fixture(scope="module")
def target(plain: tuple[Path, dict[Path, int]]) -> tuple[str, ...]:
    """Return the finished model as a target that needs no other model."""
    return AUTHORS, "model=local", f"model.path={the_run(plain[0], 'npo') / 'model'}"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    questions = [
        {"question": f"Where was {n} born?", "choices": [*TOWNS[i:], *TOWNS[:i]][:4], "answer": i % 4}
        for i, n in enumerate(NAMES)
    ]
    write(folder / "questions.jsonl", questions)
    for name in ("tiny_bio", "tiny_cyber", "tiny_chem", "tiny_mmlu", "tiny_late"):
        data = "late" if name == "tiny_late" else "questions"
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, data=folder / f"{data}.jsonl"))
    (folder / "tiny_hub.yaml").write_text(
        "task: tiny_hub\ndataset_path: nobody/nothing\ntest_split: test\noutput_type: multiple_choice\n"
    )
    return folder


# -- does it stay forgotten ------------------------------------------------------------------------------


def test_more_evaluations_train_nothing_again_and_measure_what_is_new(plain, attacked):
    cwd, before = plain
    kept = {p: t for p, t in before.items() if {"model", "records"} & set(p.parts) or p.suffix == ".jsonl"}
    kept = {p: t for p, t in kept.items() if p.name != "README.md"}  # the model's card has the new numbers
    assert len(kept) > 50
    assert stamps(kept) == kept  # the weights, what was collected, and the histories of training
    runs = {path.name for path in (cwd / "runs").iterdir() if path.name != "cache"}
    assert len(runs) == 5  # target and retain model, their evaluations, the run: none of them twice
    assert attacked[1].out.count("(complete)") == 2  # the two that were built


def test_the_numbers_of_all_robustness_evaluations(attacked):
    cwd, shown = attacked
    found = results(the_run(cwd, "npo"))
    wanted = [
        "tofu/forget_quality", "tofu/model_utility", "sampling/forget/leakage_at_4",
        "sampling/forget/leakage_at_4_low", "prompts/worst/rougeL_recall", "prompts/original/rougeL_recall",
        "relearning/2/tofu/forget/probability", "relearning/1/unseen/tofu/forget/probability",
        "relearning/examples", "quantisation/int8/tofu/forget/probability",
        "quantisation/int4/sampling/forget/leakage_at_1", "calibrated/alpha", "calibrated/retention",
        "calibrated/tofu/forget/probability", "judged/robustness", "depth/uds", "depth/logit_lens",
    ]  # fmt: skip
    assert not set(wanted) - found.keys()
    assert found["relearning/examples"] == 1  # a tenth of ten questions
    assert 0 <= found["calibrated/alpha"] <= 1
    assert found["calibrated/retention"] >= 0.95
    assert 0 < found["depth/probability"] <= found["depth/probability_max"] < 1
    for shown_key in ("sampling/forget/leakage_at_4", "quantisation/int4/tofu", "calibrated/tofu"):
        assert shown_key in shown.out


def test_the_report_has_a_section_of_each_and_no_file_has_nan(attacked):
    page = (the_run(attacked[0], "npo") / "report.html").read_text()
    for words in ("Relearning", "Quantisation", "Calibrated", "sampling", "prompts", "TOFU", "How deep"):
        assert words.lower() in page.lower(), words

    def refuse(word: str) -> float:
        raise AssertionError(word)

    for file in (attacked[0] / "runs").rglob("*.json"):  # what could not be measured is null
        json.loads(file.read_text(), parse_constant=refuse)


def test_started_again_it_calls_no_model(attacked):
    cwd, first = attacked
    before = stamps(path for path in (cwd / "runs").rglob("*") if path.name != "report.html")
    given = ("eval=[robust,calibrated,depth]", *SAMPLES, CALIBRATED, "eval.variants.relearning.steps=[1,2]")
    again = done(cwd, AUTHORS, *given)
    assert again.out.count("(complete)") == 5
    assert stamps(before) == before
    passing = ("report", "━", "runs done")
    table = [
        line for line in first.out.splitlines() if "/" in line and not any(word in line for word in passing)
    ]
    assert [line for line in table[5:] if line not in again.out] == []


# -- benchmarks of other data ----------------------------------------------------------------------------


def test_muse_request_by_request(tmp_path):
    for split in (
        "raw/forget",
        "raw/retain1",
        "raw/retain2",
        "raw/holdout",
        "sust/forget_1",
        "sust/forget_2",
    ):
        write(tmp_path / "news" / f"{split}.jsonl", texts(split))
    for split in ("forget", "retain", "holdout"):
        write(tmp_path / "news" / "privleak" / f"{split}.jsonl", texts(f"raw {split}"))
    write(tmp_path / "news" / "verbmem" / "forget.jsonl", [{"prompt": "Ada of raw", "gt": "came to Oslo."}])
    asked = [{"question": f"Where did {n} go?", "answer": t} for n, t in zip(NAMES, TOWNS, strict=True)]
    for split in ("forget_qa", "retain_qa", "forget_qa_icl", "retain_qa_icl"):
        write(tmp_path / "news" / "knowmem" / f"{split}.jsonl", asked[:3])
    given = (
        "dataset=muse-news",
        "dataset.path=news",
        "dataset.forget=sust/forget_2",
        "dataset.max_length=64",
    )

    planned = done(tmp_path, *given, "eval=muse", "dry_run=true")
    assert "unlearn sust/forget_1" in planned.out
    # Each request of a method with a reinforced model has its own; the target has no request before it.
    twice = done(tmp_path, *given, "method=whp-distilled", "eval=none", "dry_run=true")
    assert twice.out.count("runs/reinforce-muse-news-") == 2
    assert "unlearn sust" not in done(tmp_path, *given, "method=none", "eval=muse", "dry_run=true").out
    assert "benchmarks: muse" in planned.out
    assert not (tmp_path / "runs").exists()
    done(tmp_path, *given, "dataset.forget=sust/forget_1", "eval=muse")
    earlier = the_run(tmp_path, "npo")
    measured = results(earlier)
    shown = done(tmp_path, *given, "eval=[muse,relearning]", "eval.variants.relearning.steps=[1]")
    assert f"{earlier.name} (complete)" in shown.out
    assert results(earlier) == measured  # what the next request starts from is not made or measured again
    (run,) = (path for path in (tmp_path / "runs").glob("npo-*") if path != earlier)
    assert "job:\n" in (text := (run / "config.yaml").read_text())
    assert str(earlier / "model").removeprefix(f"{tmp_path}/") in text  # what it started from
    found = results(run)
    assert {"muse/forget/verbmem", "muse/forget/knowmem", "muse/retain/knowmem", "muse/privleak"} <= set(
        found
    )
    assert 0 <= found["muse/mia/min_k_auc"] <= 1
    # Relearning cuts the long text alike where a model was trained and where one is only evaluated.
    evaluations = [results(path.parent) for path in (tmp_path / "runs").glob("none-*/results.json")]
    compared = [each for each in evaluations if "relearning/examples" in each]
    assert len(compared) == 2
    assert {each["relearning/examples"] for each in (found, *compared)} == {1}
    assert {frozenset(k for k in each if k.startswith("relearning/")) for each in compared} == {
        frozenset(k for k in found if k.startswith("relearning/"))
    }


def test_lume_has_its_final_score(tmp_path):
    for mark in ("forget", "retain"):
        rows = []
        for i, (name, town) in enumerate(zip(NAMES, TOWNS, strict=True)):
            name = name if mark == "forget" else f"{name} Senior"
            completion = {"id": f"{mark}{i}sc1", "input": f"{name} went", "output": f"to {town}."}
            question = {"id": f"{mark}{i}qa0", "input": f"Where did {name} go?", "output": town}
            rows += [row | {"task": f"Task{i % 3 + 1}"} for row in (completion, question)]
        write(tmp_path / "lume" / f"{mark}.jsonl", rows)
    for part in ("member", "nonmember"):
        rows = [{"id": f"{i}", "document": row["text"]} for i, row in enumerate(texts(part))]
        write(tmp_path / "lume" / f"{part}.jsonl", rows)
    given = ("dataset=lume", "dataset.path=lume", "eval=lume", "eval.compare=false", "dataset.max_length=64")
    done(tmp_path, *given, "eval.limit=6", "eval.benchmarks.lume.mmlu=0.4")
    found = results(the_run(tmp_path, "npo"))
    assert found["lume/task_aggregate"] == 0  # a tiny model knows nothing it should, and the mean is harmonic
    assert 0 <= found["lume/mia_score"] <= 1
    assert found["lume/final"] == pytest.approx((0 + found["lume/mia_score"] + 0.4) / 3)
    # The first two rows are of one task: a mean of twelve terms is not there, and the terminal says so.
    shown = done(tmp_path, *given, "eval.limit=2")
    assert "lume: lume/task_aggregate: the mean is of twelve terms" in shown.out
    assert results(the_run(tmp_path, "npo"))["lume/task_aggregate"] is None


def test_a_text_to_forget_without_the_hub(tasks, tmp_path):
    (tmp_path / "book.txt").write_text(" ".join(row["text"] for row in texts("the book", 30)))
    (tmp_path / "other.txt").write_text(" ".join(row["text"] for row in texts("another", 30)))
    given = (
        "dataset=copyright", "dataset.path=book.txt", "dataset.retain=other.txt", "dataset.max_length=128",
        "dataset.options={chunks: 6, chunk_words: 20, prompt_words: 8}", "method=none", "eval.compare=false",
    )  # fmt: skip
    public = f"eval.benchmarks.general={{tasks: [tiny_hub], include_path: {tasks}}}"
    shown = unlearn(tmp_path, *given, "eval=copyright", public)
    assert shown.code == 2
    assert "benchmark general: lm_eval cannot load the tasks (tiny_hub): " in shown.err
    assert "'nobody/nothing' on the Hub" in shown.err
    assert "start again where the hub can be reached" in shown.err
    (file,) = tmp_path.glob("runs/none-*/eval/copyright/results.json")
    alone = json.loads(file.read_text())  # what could be measured is there
    assert any(key.startswith("copyright/forget/") for key in alone)
    assert not list(tmp_path.glob("runs/none-*/results.json"))
    done(tmp_path, *given, "eval=none", "eval.benchmarks={copyright: {}}")
    assert {k: v for k, v in results(the_run(tmp_path, "none")).items() if k in alone} == alone


# -- tasks of lm-evaluation-harness ----------------------------------------------------------------------


def test_wmdp_with_own_tasks(target, tasks, tmp_path):
    named = "eval.benchmarks.wmdp.tasks={bio: tiny_bio, cyber: tiny_cyber, chem: tiny_chem, mmlu: tiny_mmlu}"
    done(tmp_path, *target, "method=none", "eval=wmdp", f"eval.benchmarks.wmdp.include_path={tasks}", named)
    found = results(the_run(tmp_path, "none"))
    keys = ("wmdp/bio/accuracy", "wmdp/cyber/accuracy", "wmdp/chem/accuracy", "mmlu/accuracy")
    assert len({found[key] for key in keys}) == 1  # all four ask the same
    assert found["mmlu/accuracy"] * 6 == pytest.approx(round(found["mmlu/accuracy"] * 6))


def test_a_benchmark_that_fails_loses_no_other(target, tasks, tmp_path):
    given = (
        *target, "method=none", "eval=[general,tofu]", f"eval.benchmarks.general.include_path={tasks}",
        "eval.benchmarks.general.tasks=[tiny_late]",
    )  # fmt: skip
    shown = unlearn(tmp_path, *given)
    assert shown.code == 2
    assert "benchmark general: lm_eval cannot load the tasks (tiny_late): FileNotFoundError" in shown.err
    (run,) = tmp_path.glob("runs/none-*")
    before = stamps((run / "eval").rglob("records/**/*"))
    measured = json.loads((run / "eval" / "tofu" / "results.json").read_text())
    assert before
    assert not (run / "results.json").exists()
    late = tasks / "late.jsonl"
    late.write_text((tasks / "questions.jsonl").read_text())
    try:
        done(tmp_path, *given)
    finally:
        late.unlink()
    assert stamps(before) == before
    found = results(run)
    assert {k: v for k, v in found.items() if k in measured} == measured
    assert found["general/accuracy"] == found["general/tiny_late/accuracy"]


GREEDY = """
import torch

from eval.variants import Workbench
from unlearn.config import RunConfig, Section

SETS, KEYS, ATTACK = (), r"greedy", False


class Options(Section):
    pass


def check(options: Options, config: RunConfig) -> list[str]:
    return []


def identity(options: Options) -> None:
    return None


def measure(bench: Workbench, options: Options) -> dict[str, float]:
    torch.empty(1 << 60)
"""


def test_a_variant_that_is_out_of_memory_loses_no_other(target, tmp_path):
    (tmp_path / "greedy.py").write_text(GREEDY)
    variants = "eval.variants={greedy: {}, quantisation: {bits: [8]}}"
    done(tmp_path, *target, "method=none", "eval=tofu", variants, "eval.limit=2", "eval.max_new_tokens=2")
    run = the_run(tmp_path, "none")
    (problem,) = json.loads((run / "eval" / "greedy" / "problems.json").read_text())["problems"]
    assert problem.startswith("out of memory (")
    assert "what takes less: hardware.activation_checkpointing=true" in problem
    assert any(key.startswith("quantisation/int8/") for key in results(run))


def test_a_target_that_another_command_has_evaluated_otherwise_is_not_compared_with(tmp_path):
    meddling = GREEDY.replace("import torch", "from pathlib import Path").replace(
        "    torch.empty(1 << 60)\n",
        """    for file in Path("runs").glob("none-*/config.yaml"):
        text = file.read_text()
        if "evaluate the target" in text:
            file.write_text(text.replace("evaluation_key: ", "evaluation_key: other"))
    return {}
""",
    )
    (tmp_path / "meddling.py").write_text(meddling)
    given = (AUTHORS, "eval=tofu", "eval.variants={meddling: {}}", "eval.limit=2", "eval.max_new_tokens=2")
    shown = unlearn(tmp_path, *given, "method.steps=1")
    assert shown.code == 2
    assert "another command has evaluated it otherwise while this run was made" in shown.err


def test_a_model_that_is_made_again_has_no_numbers_of_the_one_before(tmp_path):
    given = (
        AUTHORS, "eval=tofu", "eval.limit=2", "eval.max_new_tokens=2", "eval.compare=false", "method.steps=1"
    )  # fmt: skip
    done(tmp_path, *given, "save_model=false")
    run = the_run(tmp_path, "npo")
    stale = run / "eval" / "tofu" / "of-the-model-before"
    stale.touch()
    done(tmp_path, *given)
    assert (run / "model").is_dir()
    assert not stale.exists()
    assert (run / "eval" / "tofu" / "results.json").is_file()


def test_two_processes_that_share_every_parameter_need_no_launcher_and_agree(target, tasks, tmp_path):
    given = (
        *target, "eval=[tofu,general,relearning]", "eval.variants.relearning.steps=[1]",
        f"eval.benchmarks.general.include_path={tasks}",
        "eval.benchmarks.general.tasks=[tiny_bio]", "method.steps=1", "eval.limit=2", "eval.max_new_tokens=2",
        "eval.compare=false",
    )  # fmt: skip
    done(tmp_path, *given, "root=one")
    done(tmp_path, *given, "root=two", "hardware=cpu-2p", "hardware.zero=3")
    runs = [the_run(tmp_path, "npo", root) for root in ("one", "two")]
    (first,), (second,) = ([row for row in RunDir(run).read_history() if "loss" in row] for run in runs)
    assert second["loss"] == approx(first["loss"], terms=PASS)
    # NPO weighs an answer by the difference of two sums of some tens of nats.
    assert second["grad_norm"] == approx(first["grad_norm"], terms=PASS, condition=32)
    alone, shared = (load_file(run / "model" / "model.safetensors") for run in runs)
    assert_trained_alike(shared, alone, lr=first["lr"], steps=1)
    one, two = map(results, runs)
    assert two.keys() == one.keys()
    assert {k for k, v in two.items() if v is None} == {k for k, v in one.items() if v is None}
    measured = {k: v for k, v in one.items() if v is not None}
    assert {k: two[k] for k in measured} == approx(measured, terms=PASS, condition=50)

    # Cut off in its evaluation, it measures the saved model, of which each process has a part.
    (runs[1] / "results.json").unlink()
    shutil.rmtree(runs[1] / "eval")
    before = stamps((runs[1] / "model").glob("*.safetensors"))
    done(
        tmp_path, *target, "eval=tofu", "method.steps=1", "eval.limit=2", "eval.max_new_tokens=2",
        "eval.compare=false", "root=two", "hardware=cpu-2p", "hardware.zero=3",
    )  # fmt: skip
    assert stamps(before) == before
    assert "without an optimizer is shared out over the processes (2)" in (runs[1] / "run.log").read_text()
    again = results(runs[1])
    repeated = {k: v for k, v in measured.items() if k.startswith("tofu/")}
    assert repeated
    assert {k: again[k] for k in repeated} == approx({k: two[k] for k in repeated}, terms=PASS, condition=50)


# -- what a run is compared with, and what cuts it off ---------------------------------------------------


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs TOFU, its logs and the nano models (UNLEARN_SHARED)")
def test_a_published_log_in_place_of_a_retain_model(tmp_path):
    log = SHARED / "data" / "tofu-published-logs" / "phi_retain90_wd0.json"
    given = (
        "model=local", f"model.path={SHARED}/models/nano-tofu-full", "dataset=tofu",
        f"dataset.path={SHARED}/data/tofu", "method=none", "eval.limit=20", "eval.max_new_tokens=2",
    )  # fmt: skip
    shown = done(tmp_path, *given, f"model.retain_log={log}")
    assert "1/1 run" in shown.out  # no other model is needed
    found = results(the_run(tmp_path, "none"))
    assert 0 < found["tofu/forget_quality"] < 1
    alone = done(tmp_path, *given)
    assert "tofu/forget_quality" not in alone.out
    refused = unlearn(tmp_path, *given, f"model.retain_log={tmp_path / 'absent.json'}")
    assert refused.code == 2
    assert "model.retain_log" in refused.err
