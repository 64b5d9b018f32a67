"""The depth of unlearning of a tiny model: the ends of the scale, what is measured, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import LlamaForCausalLM

from eval import variants
from eval.metric_catalog import info
from eval.variants import Workbench, depth
from eval.variants._answer_spans import read_spans
from eval.variants._base import HeldModel
from tests.eval.variants.workbench import SHAPE, bench, holding, llama
from tests.tolerance import PASS, assert_close, relative
from tests.worlds import together
from unlearn import interventions
from unlearn.config import (
    DatasetConfig,
    EvalConfig,
    HardwareConfig,
    MethodConfig,
    ModelConfig,
    NanoConfig,
    RunConfig,
)
from unlearn.data.batching import collate
from unlearn.distributed import start_world, stop_world
from unlearn.errors import UserError
from unlearn.models import nano
from unlearn.models.weights import WeightsSource
from unlearn.passes.forward import answer_logits

TARGET, RETAIN = 1, 2


def sure(seed: int) -> LlamaForCausalLM:
    """A model with large weights in its blocks, so that states of different seeds mean different answers."""
    model = llama(seed)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.mul_(4)
    return model


@cache
def plain() -> Workbench:
    return bench(Path("no benchmark is scored"))


def work(directory: Path, unlearned: Callable[[], Any], **other: Any) -> Workbench:
    made = replace(
        plain(), directory=directory, held=holding(unlearned, lambda: sure(TARGET)), has_target=True,
        held_from=of_folder({"retain": RETAIN}),
        weights={"target": WeightsSource("target", "t"), "retain": WeightsSource("retain", "r")},
    )  # fmt: skip
    config = made.config.model_copy(update={"root": str(directory / "root")})
    return replace(made, config=config, **other)


def of_folder(seeds: dict[str, int]) -> Callable[[str | None], HeldModel]:
    return lambda source: nullcontext((sure(seeds[str(source)]), False))


def layers(directory: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((directory / "eval/depth/layers.json").read_text())["blocks"]
    return rows


@pytest.mark.parametrize(("seed", "score"), [(TARGET, 0.0), (RETAIN, 1.0)])
def test_the_ends_of_the_scale(tmp_path: Path, seed: int, score: float) -> None:
    metrics = variants.measure("depth", work(tmp_path, lambda: sure(seed)))
    assert metrics["depth/uds"] == score
    assert metrics["depth/logit_lens"] == score
    rows = layers(tmp_path)
    assert [row["block"] for row in rows] == [1, 2]
    for row in rows:
        assert row["encoding"] > 0
        assert row["erased"] == score
        assert row["drop"] == (row["retain_drop"] if seed == RETAIN else 0)
        assert row["probability"] == row["target_probability" if seed == TARGET else "retain_probability"]


def test_a_score_in_between_and_its_files(tmp_path: Path) -> None:
    def half() -> LlamaForCausalLM:
        """The retain model's second block in the target."""
        model = sure(TARGET)
        model.model.layers[1].load_state_dict(sure(RETAIN).model.layers[1].state_dict())
        return model

    metrics = variants.measure("depth", work(tmp_path, half))
    first, second = layers(tmp_path)
    assert first["drop"] == 0  # the first block is the target's, and so are its states
    assert first["erased"] == 0
    assert second["drop"] != 0
    assert 0 <= metrics["depth/uds"] < 1
    rows = pq.read_table(tmp_path / "eval/depth/examples.parquet").to_pylist()
    assert len(rows) == 8
    assert np.nanmean([row["uds"] for row in rows]) == pytest.approx(metrics["depth/uds"])
    assert all(row["probability_max"] >= row["probability"] for row in rows)
    assert info("depth/uds").direction.startswith("↑")
    assert info("depth/uds").variant == ""


def test_the_probability_at_the_last_block_is_the_models_own(tmp_path: Path) -> None:
    made = work(tmp_path, lambda: sure(3))
    metrics = variants.measure("depth", made)
    pairs = [(example.question, example.answer) for example in made.sets["forget"]]
    model = sure(3).eval()
    expected = []
    for sequence in made.encoder.pairs(pairs):
        batch = collate([sequence])
        with torch.no_grad():
            logp = answer_logits(model, batch).log_softmax(-1)
        picked = logp.gather(-1, batch.labels[:, None])[:, 0]
        expected.append(float(picked[:-1].mean().exp()) if sequence.ended else float(picked.mean().exp()))
    assert_close(metrics["depth/probability"], np.mean(expected), terms=PASS, dtype=torch.float32)


@pytest.mark.slow
def test_the_first_stage_is_computed_once_and_portions_change_nothing(tmp_path: Path) -> None:
    def unlearned() -> LlamaForCausalLM:
        return sure(3)

    def refuse(_: Any) -> Any:
        raise AssertionError("the retain model is loaded again")

    first = depth.measure(work(tmp_path, unlearned), depth.Options())
    again = work(tmp_path, unlearned, held_from=refuse)
    assert depth.measure(again, depth.Options()) == first
    config = again.config.model_copy(
        update={"hardware": HardwareConfig(eval_tokens=1), "root": str(tmp_path / "other")}
    )
    one_by_one = depth.measure(replace(work(tmp_path, unlearned), config=config), depth.Options())
    assert_close(one_by_one, first, terms=PASS, dtype=torch.float32, condition=10)


def together_in(directory: Path) -> None:
    world = start_world("cpu")
    metrics = depth.measure(work(directory, partial(sure, 3), world=world), depth.Options())
    (directory / f"{world.rank}.json").write_text(json.dumps(metrics))
    stop_world()


@pytest.mark.slow
def test_two_processes_measure_the_same(tmp_path: Path) -> None:
    wanted = depth.measure(work(tmp_path / "alone", partial(sure, 3)), depth.Options())
    folder = tmp_path / "two"
    folder.mkdir()
    together(2, together_in, folder)
    for rank in range(2):
        metrics = json.loads((folder / f"{rank}.json").read_text())
        assert_close(metrics, wanted, terms=PASS, dtype=torch.float32, condition=10)


@pytest.mark.slow
def test_another_retain_model_is_measured_again(tmp_path: Path) -> None:
    one = work(tmp_path, lambda: sure(3))
    first = variants.measure("depth", one)
    weights = {**one.weights, "retain": WeightsSource("retain", "another")}
    other = replace(one, weights=weights, held_from=of_folder({"retain": 4}))
    assert variants.measure("depth", other)["depth/uds"] != first["depth/uds"]


def test_nothing_to_compare_with(tmp_path: Path) -> None:
    assert variants.measure("depth", replace(plain(), directory=tmp_path)) == {}  # no target
    alone = work(tmp_path, lambda: sure(3), weights={"target": WeightsSource("target", "t")})
    assert variants.measure("depth", alone) == {}


@pytest.mark.slow
def test_a_target_of_its_own(tmp_path: Path) -> None:
    made = work(tmp_path, lambda: sure(3))
    wanted = depth.measure(made, depth.Options())
    named = replace(
        made, has_target=False, weights={"retain": made.weights["retain"]},
        held_from=of_folder({"retain": RETAIN, str(tmp_path): TARGET}),
    )  # fmt: skip
    (tmp_path / "config.json").write_text("{}")
    assert depth.measure(named, depth.Options(target=str(tmp_path))) == wanted


def test_models_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    deeper = NanoConfig(**{**SHAPE.model_dump(), "layers": 3})
    with pytest.raises(UserError, match="number or the width of their blocks"):
        depth.measure(work(tmp_path, lambda: nano.model(deeper, seed=0)), depth.Options())


def test_a_model_with_an_edit_has_a_depth_and_no_lens_of_its_own(tmp_path: Path) -> None:
    def edited() -> LlamaForCausalLM:
        model = sure(TARGET)
        edit = interventions.make({"name": "grun", "layers": [1], "width": 8}, hidden_size=32, layers=2)
        with torch.no_grad():
            for parameter in edit.parameters():
                parameter.fill_(3.0)
        edit.attach(model)
        return model

    metrics = depth.measure(work(tmp_path, edited), depth.Options())
    first, second = layers(tmp_path)
    # The same but for rounding, of logits near 1: the model with the edit runs padded rows.
    assert abs(first["drop"]) < relative(terms=PASS) < abs(second["drop"])
    assert first["probability"] is None
    assert metrics["depth/probability/missing"] == 8


# -- parts of answers ------------------------------------------------------------------------------------


def entries(made: Workbench) -> list[dict[str, Any]]:
    """The last word of each answer."""
    rows = []
    for example in made.sets["forget"]:
        words = example.answer.rstrip(".").split(" ")
        prefix = " ".join(words[:-1])
        rows.append(
            {"question": example.question, "answer": example.answer, "prefix": prefix, "entity": words[-1]}
        )
    return rows


def test_only_the_entity_is_measured(tmp_path: Path) -> None:
    made = work(tmp_path, lambda: sure(3))
    file = tmp_path / "spans.json"
    file.write_text(json.dumps(entries(made)[:3]))
    items = depth.items_of(made, depth.Options(spans=str(file)))
    assert len(items) == 3
    for item, entry in zip(items, entries(made), strict=False):
        ids = item.sequence.ids[item.sequence.answer_start :][item.measured]
        assert str(made.encoder.tokenizer.decode(ids)).strip(" .") == entry["entity"]
    whole = depth.items_of(made, depth.Options())
    assert all(item.measured.sum() == item.sequence.answer_length - item.sequence.ended for item in whole)
    limited = made.config.model_copy(update={"eval": EvalConfig(limit=2)})
    assert len(depth.items_of(replace(made, config=limited), depth.Options())) == 2


def test_the_entity_follows_its_prefix(tmp_path: Path) -> None:
    file = tmp_path / "spans.json"
    row = {"question": "q", "answer": "Ann met Ann.", "entity": "Ann"}
    file.write_text(json.dumps([row]))
    assert read_spans(str(file), "key") == {("q", "Ann met Ann."): (0, 3)}
    file.write_text(json.dumps([row | {"prefix": "Ann met"}]))
    assert read_spans(str(file), "key") == {("q", "Ann met Ann."): (8, 11)}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{}", "spans=.*: expected a list of objects"),
        ("[]", "expected a list of objects"),
        ('[{"question": "q"}]', "entry 0 has no question, answer and entity"),
        ('[{"question": "q", "answer": "a", "entity": " "}]', "entry 0 has no"),
        ('[{"question": "q", "answer": "a", "entity": "b"}]', "entry 0: the entity 'b' does not follow"),
        ('[{"question": "q", "answer": "a", "entity": "a"}]', "no entry is of one of the 8 examples"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "spans.json"
    file.write_text(content)
    with pytest.raises(UserError, match=words):
        depth.items_of(work(tmp_path, lambda: sure(3)), depth.Options(spans=str(file)))


def test_what_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    config = RunConfig(
        model=ModelConfig(name="m"), dataset=DatasetConfig(name="d", source="authors", forget="forget10"),
        method=MethodConfig(name="none"), eval=EvalConfig(benchmarks={"tofu": {}}),
    )  # fmt: skip

    def problems(changed: RunConfig = config, **options: Any) -> list[str]:
        return variants.check({"depth": options}, changed)

    assert problems() == []
    (warning,) = variants.warnings_of(config.model_copy(update={"eval": EvalConfig(variants={"depth": {}})}))
    assert "eval.variants.depth.target" in warning
    assert problems(threshold=-1)[0].startswith("eval.variants.depth.threshold=-1.0")
    assert problems(spans=str(tmp_path / "none.json")) == [
        f"eval.variants.depth.spans={tmp_path / 'none.json'}: there is no such file"
    ]
    broken = tmp_path / "broken.json"
    broken.write_text("[{}]")
    assert problems(spans=str(broken))[0].startswith(f"eval.variants.depth.spans={broken}: entry 0")
    method = MethodConfig(name="ga", forget={"objective": "ga"})
    (problem,) = problems(config.model_copy(update={"method": method}), target="org/name")
    assert "starts from a target" in problem
    for model, words in (
        (ModelConfig(name="m", retain_log="log.json"), "retain_log=log.json has none"),
        (ModelConfig(name="m", is_target=True), "set model.retain"),
    ):
        (problem,) = problems(config.model_copy(update={"model": model}))
        assert words in problem
    alone = config.model_copy(update={"eval": EvalConfig(benchmarks={"tofu": {}}, compare=False)})
    assert "eval.compare=false" in problems(alone)[0]
