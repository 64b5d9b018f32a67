"""WMDP's line-up as a user starts it, on a miniature of its corpora and questions, without network.

The texts are about clockwork moss, which does not exist.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.launch.commands import done
from unlearn.config import NanoConfig
from unlearn.models import export, nano
from unlearn.run_dir import RunDir

pytestmark = pytest.mark.slow

TINY = (
    "model=local", "model.is_target=true", "method.steps=2", "dataset.max_length=32", "hardware=cpu",
    "hardware.threads=1", "tracker=disabled", "eval.compare=false",
)  # fmt: skip
METHODS = ("rmu-wmdp", "grun-wmdp")
SIZES = {"wmdp/bio/accuracy": 6, "wmdp/cyber/accuracy": 4, "mmlu/accuracy": 5}
"""The number of questions behind each metric."""
COLOURS = ("amber", "teal", "rust", "plum", "ivory", "slate")
# The shape of the library's own task files.
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
description: "The following are multiple choice questions (with answers) about clockwork moss.\\n\\n"
doc_to_text: "{{{{question.strip()}}}}\\nA. {{{{choices[0]}}}}\\nB. {{{{choices[1]}}}}\\n\
C. {{{{choices[2]}}}}\\nD. {{{{choices[3]}}}}\\nAnswer:"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1}}
"""


def passages(of: str, count: int) -> list[str]:
    return [
        f"The {colour} moss of the {of} valley is wound {i + 2} times a day by a {COLOURS[-i - 1]} key."
        for i, colour in enumerate(COLOURS[:count])
    ]


def write(file: Path, rows: Sequence[Any]) -> None:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    file.write_text("".join(f"{line}\n" for line in lines))


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
def miniature(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The corpora, and the questions in task files with the names of the library's."""
    corpora, tasks = tmp_path_factory.mktemp("corpora"), tmp_path_factory.mktemp("tasks")
    write(corpora / "bio_remove_dataset.jsonl", [{"text": text} for text in passages("upper", 6)])
    write(corpora / "cyber-forget-corpus.jsonl", passages("lower", 4))
    write(corpora / "wikitext.jsonl", [{"text": text} for text in ("", " = Moss = ", *passages("far", 5))])
    for part, of, count in (("wmdp_bio", "upper", 6), ("wmdp_cyber", "lower", 4), ("mmlu", "far", 5)):
        questions = [
            {
                "question": f"Which key winds the {colour} moss of the {of} valley?",
                "choices": [*COLOURS[i:], *COLOURS[:i]][:4],
                "answer": i % 4,
            }
            for i, colour in enumerate(COLOURS[:count])
        ]
        write(tasks / f"{part}.jsonl", questions)
        (tasks / f"{part}.yaml").write_text(TASK.format(name=part, data=tasks / f"{part}.jsonl"))
    return corpora, tasks


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-trained model, in form: as deep as RMU's layers need."""
    shape = NanoConfig(hidden_size=16, layers=8, heads=2, vocabulary=400)
    folder = tmp_path_factory.mktemp("target") / "model"
    export.save_pretrained(nano.model(shape, seed=1), nano.tokenizer(shape.vocabulary), folder)
    return folder


def test_the_line_up_on_a_miniature(miniature: tuple[Path, Path], target: Path, tmp_path: Path) -> None:
    corpora, tasks = miniature
    asked = f"eval.benchmarks.wmdp={{parts: [bio, cyber], include_path: {tasks}}}"
    done(
        tmp_path, "-m", "experiment=wmdp-lineup", *TINY, f"model.path={target}", f"dataset.path={corpora}",
        asked, f"method={','.join(METHODS)}",
    )  # fmt: skip
    before = load_file(target / "model.safetensors")
    runs = {}
    for method in METHODS:
        (run,) = (path.parent for path in (tmp_path / "runs").glob(f"{method}-wmdp-*/results.json"))
        runs[method] = RunDir(run)
        results = json.loads((run / "results.json").read_text())
        measured = {key: results[key] for key in results if key.startswith(("wmdp/", "mmlu/"))}
        assert measured.keys() == SIZES.keys()
        for key, questions in SIZES.items():
            correct = measured[key] * questions
            assert correct == pytest.approx(round(correct))
            assert 0 <= correct <= questions
        assert len((run / "history.jsonl").read_text().splitlines()) == 2
    # RMU trains three matrices alone; GRUN leaves the weights as they are and adds its edits.
    after = {method: load_file(run.model / "model.safetensors") for method, run in runs.items()}
    moved = {name for name, tensor in before.items() if not tensor.equal(after["rmu-wmdp"][name])}
    assert moved == {f"model.layers.{block}.mlp.down_proj.weight" for block in (5, 6, 7)}
    assert all(tensor.equal(after["grun-wmdp"][name]) for name, tensor in before.items())
    assert (runs["grun-wmdp"].model / "interventions.safetensors").is_file()
