"""Processes of OpenUnlearning and of ours that make the same run, and what they measure.

`python -m benches.peer_runs OVERRIDES` makes one run of ours and prints its CPU seconds and its memory.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benches.cases import ROOT, SHARED
from benches.peer_driver import BATCH, resident
from unlearn.data.alternatives import refusals
from unlearn.data.batching import Schedule
from unlearn.run_dir import RunDir

DATA, MODELS = SHARED / "data" / "tofu", SHARED / "models"
TARGET, RETAIN = "nano-tofu-full", "nano-tofu-retain90"
FILES = {"forget": "forget10.json", "retain": "retain90.json"}

Measured = dict[str, Any]
"""CPU `seconds` (a list), `peak` and `imports` (resident bytes), the first step's `loss` or the `metrics`."""


class Peer:
    """Runs of a checkout of OpenUnlearning by its own interpreter."""

    def __init__(self, checkout: Path, python: str, folder: Path) -> None:
        self._checkout, self._python, self._folder = checkout, python, folder
        self._models = {name: copy_for_peer(MODELS / name, folder / name) for name in (TARGET, RETAIN)}
        self._refusals = folder / "refusals.txt"
        self._refusals.write_text("\n".join(refusals()) + "\n", encoding="utf-8")

    def train(self, trainer: str, experiment: str, steps: int) -> Measured:
        """Train from the target, on the rows that ours takes in each step."""
        sizes = {group: len((DATA / file).read_text("utf-8").splitlines()) for group, file in FILES.items()}
        planned = [Schedule(sizes, "forget", BATCH, seed=0).rows(step) for step in range(steps)]
        rows = {group: [[row for row, _ in step[group]] for step in planned] for group in sizes}
        return self._run(TARGET, task="training", trainer=trainer, experiment=experiment, rows=rows)

    def evaluate(self, model: str, retain_log: str | None) -> Measured:
        """Evaluate; `log` is the file of its values, to compare further evaluations with."""
        return self._run(model, task="evaluation", retain_log=retain_log)

    def _run(self, model: str, **job: Any) -> Measured:
        output = tempfile.mkdtemp(dir=self._folder)
        job |= {
            "peer": str(self._checkout), "model": self._models[model], "data": str(DATA.resolve()),
            "refusals": str(self._refusals), "output": output,
        }  # fmt: skip
        return _child([self._python, str(Path(__file__).with_name("peer_driver.py"))], {}, json.dumps(job))


class Ours:
    """The same runs by the command of this project, on this `hardware`."""

    def __init__(self, folder: Path, hardware: str) -> None:
        self._folder, self._hardware = folder, hardware

    def train(self, preset: str, steps: int) -> Measured:
        child, run = self._run(
            f"method={preset}", f"method.batch={BATCH}", f"method.steps={steps}", "eval=none"
        )
        return child | {"seconds": child["steps"], "loss": run.history_by_step()[0]["loss"]}

    def evaluate(self, retain_log: str) -> Measured:
        """Evaluate without gradient norms; of attacks, those that come with Min-K's pass are made too."""
        child, run = self._run(
            "method=none",
            "eval=tofu",
            "eval.benchmarks.tofu.gradients=false",
            f"model.retain_log={retain_log}",
        )
        return child | {"seconds": [child["whole"]], "metrics": run.read_results()}

    def _run(self, *overrides: str) -> tuple[Measured, RunDir]:
        root = Path(tempfile.mkdtemp(dir=self._folder))
        child = _child(
            [
                sys.executable, "-m", "benches.peer_runs", *overrides, "seed=0", "model=local",
                f"model.path={(MODELS / TARGET).resolve()}", "dataset=tofu", f"dataset.path={DATA.resolve()}",
                "dataset.holdout=full@1200:1600", f"hardware={self._hardware}", "hardware.threads=1",
                "tracker=disabled", f"root={root}",
            ],
            {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        (config,) = root.rglob("config.yaml")  # of one run: no other model was built
        return child, RunDir(config.parent)


def copy_for_peer(model: Path, copy: Path) -> str:
    """Copy a model's folder, with the names that transformers 4.45 knows; returns the copy."""
    shutil.copytree(model, copy)
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config["torch_dtype"] = config.pop("dtype")
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    file = copy / "tokenizer_config.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8")) | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": (copy / "chat_template.jinja").read_text(encoding="utf-8"),
    }
    file.write_text(json.dumps(tokenizer), encoding="utf-8")
    return str(copy)


def _child(command: Sequence[str], environment: Mapping[str, str], given: str = "") -> Measured:
    """Run a process of one thread on the CPU; returns the JSON of its last line.

    Raises:
        RuntimeError: it failed; with the end of its messages.
    """
    own = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    kept = {key: value for key, value in os.environ.items() if key not in own}
    cpu = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, input=given, env={**kept, **cpu, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        output = f"{done.stderr[-3000:]}{done.stdout[-1000:]}"
        raise RuntimeError(f"{' '.join(command[:3])} failed with exit code {done.returncode}:\n{output}")
    measured: Measured = json.loads(done.stdout.splitlines()[-1])
    return measured


def _main() -> None:
    # In the order of the command, which hides from DeepSpeed what it need not import.
    from launch.cli import command  # isort: skip
    from unlearn.garbage import pause_collection

    pause_collection()  # as the command does before it imports torch
    import launch.run.execute  # isort: skip  # noqa: F401 (a training imports these anyway)
    from unlearn.training.trainer import StepResult, Trainer  # isort: skip

    steps: list[float] = []
    step = Trainer.step

    def timed(trainer: Trainer) -> StepResult:
        started = time.process_time()
        result = step(trainer)
        steps.append(time.process_time() - started)
        return result

    Trainer.step = timed  # type: ignore[assignment, method-assign]
    imports, started = resident("VmRSS"), time.process_time()
    if code := command(sys.argv[1:]):
        sys.exit(code)
    whole = time.process_time() - started
    print(json.dumps({"steps": steps, "whole": whole, "imports": imports, "peak": resident("VmHWM")}))


if __name__ == "__main__":
    _main()
