"""What the method bench measures, and its arithmetic."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
import torch

from benches.cases import settings
from benches.gpu.__main__ import SHARES
from benches.gpu.bench import Bench
from benches.gpu.models import LONG, Operations, groups, measure_step, shape_of
from benches.gpu.parts import method_of
from benches.gpu.table import TITLES
from benches.methods import compare
from benches.presets import BATCH, VARIANTS, Row, as_measured, rows
from launch.memory.estimate import Load
from tests.paths import ROOT

ROWS = rows()
SPEED = ("training", "memory", "geffect", "evaluation", "generation")


def row(name: str) -> Row:
    (found,) = (each for each in ROWS if name in each.names)
    return found


def test_every_preset_that_trains_is_measured_once() -> None:
    names = [name for each in ROWS for name in each.names]
    presets = {file.stem for file in (ROOT / "configs" / "method").glob("*.yaml")}
    assert sorted(names) == sorted(set(names))
    # Nothing is trained; NGDiff is compared with separate backwards.
    assert presets - set(names) == {"none", "whp", "dsg", "ngdiff"}
    assert set(names) - presets == set(VARIANTS)


def test_rows_are_shared_by_presets_that_differ_in_numbers_alone() -> None:
    assert set(row("npo").names) == {"npo", "npo-altpo", "npo-wmdp"}
    assert row("satimp") == row("satimp-muse")
    assert row("rmu") != row("rmu-adaptive")
    assert row("dpo") != row("altpo")  # refusals are shorter than other answers
    assert row("kl_min") != row("kl_min, mask=answer")


@pytest.mark.parametrize(
    ("name", "aim"),
    [
        ("grad_diff", 1.1), ("satimp", 1.1), ("nlul without a teacher", 1.1), ("dpo", 1.1), ("undial", 1.6),
        ("kl_min, mask=answer", 1.6), ("kl_min", None), ("nlul", None), ("kto", None),
    ],
)  # fmt: skip
def test_aims(name: str, aim: float | None) -> None:
    assert row(name).aim == aim


def test_a_preset_is_measured_with_the_benchs_batch_and_without_generating() -> None:
    method = as_measured(settings("method", "altpo"))
    assert (method.batch, method.steps, method.schedule) == (BATCH, None, "constant")
    assert (method.alternatives.source, method.alternatives.count) == ("mismatch", 5)


def test_ratios_are_of_cpu_time_and_of_tokens() -> None:
    seen: list[tuple[str, int]] = []

    def step(name: str, work: int, tokens: float) -> float:
        seen.append((name, work))
        until = time.process_time() + 0.01 * work
        while time.process_time() < until:
            pass
        return tokens

    found = compare(
        lambda n: step("base", 1, 10.0),
        {"a": lambda n: step("a", 3, 15.0), "b": lambda n: step("b", 1, 5.0)},
        2,
    )
    assert [name for name, _ in seen] == ["base", "a", "b", "base", "a", "b", "b", "a", "base"]
    a, b = found["a"], found["b"]
    # Three times the work for 1.5 times the tokens; as much work for half of them.
    assert (a.tokens, b.tokens) == (1.5, 0.5)
    assert a.step == pytest.approx(3.0, rel=0.25)
    assert a.per_token == pytest.approx(2.0, rel=0.25)
    assert b.per_token == pytest.approx(2.0, rel=0.25)
    assert a.low <= a.per_token <= a.high


@pytest.mark.slow
def test_the_check_on_a_gpu_runs_on_a_cpu_too(tmp_path):
    command = [sys.executable, "-m", "benches.gpu", "--device", "cpu", "--model", "tiny", "--seconds", "240"]
    subprocess.run([*command, "--out", str(tmp_path)], cwd=ROOT, check=True)
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert list(results["parts"]) == list(SHARES)
    rows = {name: part["rows"] for name, part in results["parts"].items()}
    assert not [row for some in rows.values() for row in some if "error" in row]
    assert [row["method"] for row in rows["training"]] == ["npo", "satimp", "kl_min", "ngdiff"]
    # Nothing but CUDA knows these.
    assert {row["share of peak"] for row in rows["training"]} == {None}
    assert {row["peak GiB"] for row in rows["memory"]} == {None}
    assert all(row["tokens/s"] > 0 for name in SPEED for row in rows[name])
    (effects,), (largest,) = rows["effects"], rows["largest"]
    assert effects["largest difference"] < 1e-3
    assert (largest["should fit"], largest["did fit"]) == ("yes", "yes")
    text = (tmp_path / "gpu.md").read_text()
    assert all(f"## {title}" in text for title in TITLES.values())


def test_operations_of_a_step_are_those_of_a_plain_forward_and_backward(tmp_path):
    bench = Bench("tiny", "cpu", tmp_path, time.monotonic() + 60)
    data = groups("tiny", 2, long=True)
    trainer = bench.shop().trainer(method_of(bench, "npo", long=True), data)
    step = measure_step(trainer, 0, 1024)
    trainer.engine.close()
    model, shape = bench.make(), shape_of("tiny")
    model.set_attn_implementation("eager")
    with Operations() as counted:
        for sequence in (s for group in data.values() for s in group.part("answers").sequences):
            ids = torch.from_numpy(sequence.ids)
            hidden = model.model(ids[None, :-1]).last_hidden_state[0, sequence.answer_start - 1 :]
            torch.nn.functional.cross_entropy(model.lm_head(hidden), ids[sequence.answer_start :]).backward()
    lengths = [LONG - 1] * 4
    # Eager attention also computes what the causal mask hides.
    hidden_by_mask = 6 * shape.layers * shape.heads * shape.head_dim * sum(n * n for n in lengths)
    assert step.flops == counted.total - hidden_by_mask
    assert step.tokens == sum(lengths)
    # Two sequences fit into a micro-batch.
    assert step.load == Load(2 * (LONG - 1), LONG - 1, LONG)
