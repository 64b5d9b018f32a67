"""A finished model trained again on part of what it forgot, by the real engine."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from eval import variants
from eval.metric_catalog import info
from eval.suite import Scoring
from eval.variants.relearning import Options, also_seen, curves, relearned, warnings
from tests.eval.variants.workbench import RELEARNING, bench, llama, relearn
from tests.tolerance import approx
from unlearn import interventions
from unlearn.config import HardwareConfig, LoraConfig
from unlearn.distributed import World, start_world, stop_world
from unlearn.errors import UserError
from unlearn.signals import Stopped

pytestmark = pytest.mark.slow
KEY = "tofu/forget/probability"


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    yield start_world("cpu")
    stop_world()


@pytest.fixture(scope="module")
def done(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mapping[str, float]]:
    folder = tmp_path_factory.mktemp("relearned")
    return folder, relearn(folder, world, HardwareConfig())


def test_what_is_trained_on_comes_back(done: tuple[Path, Mapping[str, float]], world: World) -> None:
    folder, metrics = done
    before = bench(folder, world=world).score(llama(), "before", ["forget"])[KEY]
    curve = [before, *(metrics[f"relearning/{steps}/{KEY}"] for steps in (2, 6))]
    assert curve == sorted(curve)
    assert curve[-1] > 1.5 * curve[0]
    assert metrics["relearning/steps"] == 6
    assert metrics["relearning/examples"] == 2
    assert not any("retain" in key for key in metrics)
    history = (folder / "eval" / "relearning" / "history.jsonl").read_text().splitlines()
    rows = [json.loads(row) for row in history]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert {row["lr"] for row in rows} == {5e-3}
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert not (folder / "eval" / "relearning" / "checkpoints").exists()


def test_what_was_not_trained_on_is_measured_separately(done: tuple[Path, Mapping[str, float]]) -> None:
    """Eight examples, two of them trained on: the mean over all is that of the six and the two."""
    import pyarrow.parquet as pq

    folder, metrics = done
    seen = {e.id for e in relearned(bench(folder), variants.options_of("relearning", RELEARNING))}
    table = pq.read_table(folder / "eval" / "relearning" / "6" / "tofu" / "examples.parquet").to_pylist()
    values = {row["id"]: row["probability"] for row in table}
    assert len(values) == 8
    assert len(seen & values.keys()) == 2
    rest = [value for key, value in values.items() if key not in seen]
    assert metrics[f"relearning/6/unseen/{KEY}"] == approx(sum(rest) / 6)
    assert metrics[f"relearning/6/{KEY}"] == approx(sum(values.values()) / 8)
    assert metrics[f"relearning/6/unseen/{KEY}"] < metrics[f"relearning/6/{KEY}"]


def test_it_is_the_same_again(done: tuple[Path, Mapping[str, float]], world: World, tmp_path: Path) -> None:
    _, metrics = done
    assert relearn(tmp_path, world, HardwareConfig(micro_batch=1)) == near(metrics, 1e-4)


def test_a_measured_curve_trains_nothing(done: tuple[Path, Mapping[str, float]], world: World) -> None:
    folder, metrics = done

    def none() -> Any:
        raise AssertionError("no model is wanted")

    again = variants.measure("relearning", bench(folder, world=world, unlearned=none), RELEARNING)
    assert again == near(metrics, 0)


def near(metrics: Mapping[str, float], rel: float) -> Any:
    return pytest.approx(dict(metrics), rel=rel, nan_ok=True)


class Interrupted(Scoring):
    """Dies once the first label is scored."""

    def __call__(self, model: Any, label: str, roles: Any, **options: Any) -> dict[str, float]:
        found = super().__call__(model, label, roles, **options)
        if "exclude_ids" in options:
            raise KeyboardInterrupt
        return found


def test_a_killed_curve_goes_on_with_what_was_scored(
    done: tuple[Path, Mapping[str, float]], world: World, tmp_path: Path
) -> None:
    _, metrics = done
    work = bench(tmp_path, world=world)
    assert isinstance(work.score, Scoring)
    killed = Interrupted(**{name: getattr(work.score, name) for name in Scoring.__dataclass_fields__})
    with pytest.raises(KeyboardInterrupt):
        variants.measure("relearning", bench(tmp_path, world=world, score=killed), RELEARNING)
    records = sorted((tmp_path / "eval" / "relearning" / "2" / "tofu" / "records").rglob("*.parquet"))
    written = [path.stat().st_mtime_ns for path in records]
    assert written
    assert relearn(tmp_path, world, HardwareConfig()) == near(metrics, 1e-4)
    assert [path.stat().st_mtime_ns for path in records] == written
    history = (tmp_path / "eval" / "relearning" / "history.jsonl").read_text().splitlines()
    assert len(history) == 6


def test_a_signal_stops_the_training_and_leaves_no_checkpoint(world: World, tmp_path: Path) -> None:
    def model() -> Any:
        made = llama()
        made.register_forward_pre_hook(lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        return made

    with pytest.raises(Stopped):
        variants.measure("relearning", bench(tmp_path, world=world, unlearned=model), RELEARNING)
    assert not list((tmp_path / "eval" / "relearning").glob("checkpoints/*"))


def test_the_part_is_drawn_by_the_seed(tmp_path: Path) -> None:
    work = bench(tmp_path)
    ids = [e.id for e in relearned(work, Options(share=0.5))]
    assert len(set(ids)) == 4
    assert ids == [e.id for e in relearned(work, Options(share=0.5))]
    assert ids[:2] == [e.id for e in relearned(work, Options(share=0.25))]  # more of them, not others
    assert ids != [e.id for e in work.sets["forget"][:4]]
    other = work.config.model_copy(update={"seed": 1})  # of the run: the same part for all models
    assert ids == [e.id for e in relearned(bench(tmp_path, config=other), Options(share=0.5))]
    assert ids != [e.id for e in relearned(work, Options(share=0.5, seed=1))]
    assert len(relearned(work, Options(share=1e-9))) == 1  # never none


def test_other_text_can_be_trained_on(tmp_path: Path) -> None:
    work = bench(tmp_path)
    known = work.sets["forget"][3]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(map(json.dumps, (
        {"question": "Who?", "answer": "Nobody."}, {"question": known.question, "answer": known.answer},
    ))))  # fmt: skip
    examples = relearned(work, Options(text=str(rows)))
    assert [e.answer for e in examples] == ["Nobody.", known.answer]
    assert also_seen(work, examples) == {known.id}  # an evaluated example, whatever its id in the file
    prose = tmp_path / "prose.txt"
    prose.write_text("All of it was written down. " * 100)
    pieces = relearned(work, Options(text=str(prose)))
    assert len(pieces) > 1
    assert "".join(e.answer for e in pieces).split() == prose.read_text().split()
    assert also_seen(work, pieces) == frozenset()
    # A text of the forget set that is trained on in pieces is evaluated as a whole.
    whole = replace(known, id="book")
    sets = {**work.sets, "forget_eval": [whole, *work.sets["forget_eval"]]}
    cut = [replace(known, id=f"book#{i}", answer=part) for i, part in enumerate(("One.", "Two."))]
    assert also_seen(replace(work, sets=sets), cut) == {"book"}


def test_curves_of_several_numbers_and_of_unrelated_text(world: World, tmp_path: Path) -> None:
    prose = tmp_path / "prose.txt"
    prose.write_text("All of it was written down. " * 30)
    options = {**RELEARNING, "steps": [1], "examples": [4, 2], "unrelated": str(prose)}
    work = bench(tmp_path, world=world)
    parsed = variants.options_of("relearning", options)
    drawn = {name: [e.id for e in examples] for name, examples in curves(work, parsed).items()}
    assert list(drawn) == ["2_examples", "4_examples", "unrelated"]
    assert drawn["2_examples"] == drawn["4_examples"][:2]
    metrics = variants.measure("relearning", work, options)
    assert [metrics[f"relearning/{name}/examples"] for name in drawn] == [len(ids) for ids in drawn.values()]
    labels = {info(key).variant for key in metrics} - {""}
    assert labels == {
        "relearning/2_examples/1", "relearning/2_examples/1/unseen", "relearning/4_examples/1",
        "relearning/4_examples/1/unseen", "relearning/unrelated/1",
    }  # fmt: skip
    assert len({metrics[f"relearning/{name}/1/{KEY}"] for name in drawn}) == 3
    with pytest.raises(UserError, match=r"relearning\.examples: 9 examples are wanted, and there are 8"):
        curves(work, Options(examples=(9,)))


def test_nothing_to_train_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"relearning\.text"):
        relearned(bench(tmp_path, sets={}), Options())


def test_the_attack_is_the_same_on_a_model_of_adapters(
    done: tuple[Path, Mapping[str, float]], world: World, tmp_path: Path
) -> None:
    usual = bench(tmp_path / "whole", world=world)
    lora = usual.config.model.model_copy(update={"lora": LoraConfig(r=2)})
    adapted = replace(usual, config=usual.config.model_copy(update={"model": lora}))
    assert variants.measure("relearning", adapted, RELEARNING) == done[1]
    assert variants.settings_of("relearning", adapted.config) == variants.settings_of(
        "relearning", usual.config
    )
    assert "adapters=8" in warnings(Options(), adapted.config)[0]
    assert warnings(Options(adapters=8), adapted.config) == warnings(Options(), usual.config) == []
    few = variants.measure("relearning", bench(tmp_path / "few", world=world), {**RELEARNING, "adapters": 2})
    assert few[f"relearning/6/{KEY}"] != done[1][f"relearning/6/{KEY}"]


def test_too_high_a_rate_is_named(world: World, tmp_path: Path) -> None:
    def model() -> Any:
        made = llama()
        made.model.norm.weight.data.fill_(torch.inf)
        return made

    with pytest.raises(UserError, match=r"lower eval\.variants\.relearning\.lr=0\.005"):
        variants.measure("relearning", bench(tmp_path, world=world, unlearned=model), RELEARNING)


def test_an_edited_model_is_trained_under_its_edit(world: World, tmp_path: Path) -> None:
    edits = []

    def model() -> Any:
        made: Any = llama()
        edit = interventions.make({"name": "grun", "layers": [0], "width": 8}, hidden_size=32, layers=2)
        edit.attach(made, train=False)
        edits.append((edit, {n: t.clone() for n, t in edit.state_dict().items()}))
        return made

    options = {**RELEARNING, "steps": [2]}
    metrics = variants.measure("relearning", bench(tmp_path, world=world, unlearned=model), options)
    assert 0 < metrics[f"relearning/2/{KEY}"] < 1
    (edit, before) = edits[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in edit.state_dict().items())
