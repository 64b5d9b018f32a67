"""Train or evaluate with OpenUnlearning's own classes; executed by its interpreter, not by ours.

Reads a job as JSON from standard input, writes its measurements as the last line of standard output. Imports
nothing of this project. Its configuration is composed as by its scripts; what is replaced is the model, the
loader of data sets (local JSON), the precision and optimizer of a CPU, and the order of the rows.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

BATCH = 32  # sequences of each group per step: its defaults, 8 per device times 4

# Its arguments of training that suit one CPU, without an evaluation. Warm-up is counted by CUDA devices.
CPU = {
    "use_cpu": True, "bf16": False, "bf16_full_eval": False, "optim": "adamw_torch", "warmup_epochs": None,
    "do_eval": False, "eval_on_start": False, "eval_strategy": "no",
}  # fmt: skip

Job = dict[str, Any]


def main() -> None:
    job: Job = json.load(sys.stdin)
    os.chdir(job["output"])
    sys.path.insert(0, str(Path(job["peer"]) / "src"))
    with contextlib.redirect_stdout(sys.stderr):
        import torch

        torch.set_num_threads(1)
        for name in ("data", "model", "trainer", "evals", "deepspeed"):
            import_module(name)
        imports = resident("VmRSS")
        _read_local_data(Path(job["data"]))
        measured = _train(job) if job["task"] == "training" else _evaluate(job)
    print(json.dumps(measured | {"imports": imports}))


def resident(field: str) -> int:
    """Return bytes of this process: `VmRSS` now, `VmHWM` at its peak."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def _train(job: Job) -> dict[str, Any]:
    """Return CPU seconds by step, the peak in bytes, and the loss of the first step's rows in one batch."""
    config = _compose(job, "unlearn", job["experiment"], [f"trainer={job['trainer']}"])
    config.trainer.args.update(CPU | {"max_steps": len(job["rows"]["forget"])})
    for name in config.data.forget:
        if "idk_path" in config.data.forget[name].args:
            config.data.forget[name].args.idk_path = job["refusals"]
    import_module("trainer.utils").seed_everything(config.trainer.args.seed)
    model, tokenizer = import_module("model").get_model(config.model.copy())
    template = config.model.template_args
    given = {"tokenizer": tokenizer, "template_args": template}
    sets = {name: import_module("data").get_datasets(config.data[name], **given) for name in job["rows"]}
    rows = _pairs(sets, job["rows"])
    collator = import_module("data").get_collators(config.collator, tokenizer=tokenizer)
    trainer, arguments = import_module("trainer").load_trainer(
        config.trainer, model=model, train_dataset=rows, tokenizer=tokenizer, data_collator=collator,
        template_args=template,
    )  # fmt: skip
    if arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps != BATCH:
        raise ValueError(f"its batch is no longer {BATCH} sequences")
    seconds = _timed_steps(trainer, rows)
    peak = resident("VmHWM")
    import torch

    # Its steps average averages of portions: compared is one batch, which has one average.
    trainer.model = import_module("model").get_model(config.model.copy())[0]
    with torch.no_grad():
        loss = float(trainer.compute_loss(trainer.model, collator([rows[i] for i in range(BATCH)])))
    return {"seconds": seconds, "peak": peak, "loss": loss}


def _timed_steps(trainer: Any, rows: Any) -> list[float]:
    """Train; returns the CPU seconds from the begin to the end of each step."""
    from torch.utils.data import SequentialSampler
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.begun, self.seconds = 0.0, list[float]()

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.begun = time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(time.process_time() - self.begun)

    clock = Clock()
    trainer.add_callback(clock)
    trainer._get_train_sampler = lambda *_: SequentialSampler(rows)
    trainer.train()
    return clock.seconds


def _evaluate(job: Job) -> dict[str, Any]:
    """Return CPU seconds of its default TOFU suite, the peak in bytes, its metrics and its log's file."""
    config = _compose(job, "eval", "eval/tofu/default", [])
    config.model.tokenizer_args["padding_side"] = "left"
    config.eval.tofu.retain_logs_path = job["retain_log"]
    config.eval.tofu.overwrite = True
    model, tokenizer = import_module("model").get_model(config.model.copy())
    (suite,) = import_module("evals").get_evaluators(config.eval).values()
    started = time.process_time()
    metrics = suite.evaluate(model=model, tokenizer=tokenizer, template_args=config.model.template_args)
    seconds = time.process_time() - started
    log = str(Path(job["output"]) / "TOFU_EVAL.json")
    return {"seconds": [seconds], "peak": resident("VmHWM"), "metrics": metrics, "log": log}


def _compose(job: Job, name: str, experiment: str, overrides: list[str]) -> Any:
    """Compose a configuration of the peer's with the job's model, in fp32, with its chat template alone."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    peer = job["peer"]
    with initialize_config_dir(config_dir=str(Path(peer) / "configs"), version_base=None):
        config = compose(
            name, [f"experiment={experiment}", *overrides, "task_name=bench", f"paths.root_dir={peer}",
                   f"paths.output_dir={job['output']}"],
        )  # fmt: skip
    OmegaConf.set_struct(config, False)
    where = {"pretrained_model_name_or_path": job["model"]}
    config.model.model_args = where | {"attn_implementation": "sdpa", "torch_dtype": "float32"}
    config.model.tokenizer_args = where
    config.model.template_args = {"apply_chat_template": True}
    return config


def _pairs(sets: dict[str, Any], rows: dict[str, list[list[int]]]) -> Any:
    """Return the data set of the steps' rows, in the order of the steps."""
    from torch.utils.data import Dataset

    order = [
        dict(zip(rows, pair, strict=True))
        for step in zip(*rows.values(), strict=True)
        for pair in zip(*step, strict=True)
    ]

    class Rows(Dataset):
        def __len__(self) -> int:
            return len(order)

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {name: sets[name][row] for name, row in order[index].items()}

    return Rows()


def _read_local_data(folder: Path) -> None:
    """Replace its loader of data sets: `<name>.json`; held out are rows 1200 to 1599 of `full`."""
    from datasets import Dataset

    def load(path: str, name: str, **_: Any) -> Any:
        if name == "holdout10":
            return Dataset.from_list(_rows(folder / "full.json")[1200:1600])
        return Dataset.from_list(_rows(folder / f"{name}.json"))

    import_module("data.qa").load_hf_dataset = load  # type: ignore[attr-defined]


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


if __name__ == "__main__":
    main()
