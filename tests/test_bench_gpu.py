"""The check on a GPU, on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
import torch

from benches.gpu.__main__ import SHARES
from benches.gpu.bench import Bench
from benches.gpu.models import LONG, Operations, groups, measure_step, shape_of
from benches.gpu.parts import method_of
from benches.gpu.table import TITLES
from launch.memory.estimate import Load
from tests.paths import ROOT

# The others take most of the time: `python -m benches.gpu --device cpu --model tiny` tries all.
PARTS = ("memory", "effects")


@pytest.mark.slow
def test_the_check_on_a_gpu_runs_on_a_cpu_too(tmp_path):
    command = [sys.executable, "-m", "benches.gpu", "--device", "cpu", "--model", "tiny", "--seconds", "240"]
    subprocess.run([*command, "--parts", ",".join(PARTS), "--out", str(tmp_path)], cwd=ROOT, check=True)
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert list(results["parts"]) == list(PARTS)
    assert set(PARTS) < set(SHARES)
    rows = {name: part["rows"] for name, part in results["parts"].items()}
    assert not [row for some in rows.values() for row in some if "error" in row]
    # Nothing but CUDA knows these.
    assert {row["peak GiB"] for row in rows["memory"]} == {None}
    assert all(row["tokens/s"] > 0 for row in rows["memory"])
    (effects,) = rows["effects"]
    assert effects["largest difference"] < 1e-3
    text = (tmp_path / "gpu.md").read_text()
    assert all((f"## {title}" in text) == (part in PARTS) for part, title in TITLES.items())


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
