"""SweepRun-up runs as they leave their directories, for comparisons of a few and of hundreds."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SETS = ("forget", "retain", "real_authors", "world_facts")
METHODS = ("grad_diff", "npo", "simnpo", "rmu", "dpo", "undial", "wga", "satimp", "flat", "idk")


def write_run(
    path: Path, *, method: str = "npo", seed: int = 0, lr: float = 1e-5, keys: dict[str, Any] | None = None,
    results: Mapping[str, float | None] | None = None, role: str = "run",
    baselines: dict[str, Any] | None = None, dataset: dict[str, Any] | None = None,
    rows: list[dict[str, Any]] | None = None,
) -> Path:  # fmt: skip
    """A finished run with these results; `keys` are further ones of its method."""
    path.mkdir(parents=True)
    config = {
        "model": {"name": "nano", "path": None},
        "dataset": {"name": "authors", "forget": "forget10"} | (dataset or {}),
        "method": {"name": method, "source": f"on {method}", "lr": lr, "epochs": 10.0} | (keys or {}),
        "hardware": {"name": "cpu", "processes": 1, "dtype": "fp32"},
        "seed": seed,
        "root": str(path.parent),
        "fingerprint": f"{path.name:0>16}",
        "job": {"role": role, "beside": {"retain": None, "target": None, "log": None} | (baselines or {})},
    }  # fmt: skip
    (path / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    if results is not None:
        (path / "results.json").write_text(json.dumps(dict(results)))
    if rows is not None:
        (path / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_examples(path: Path, answer: str, *, each: int = 5, question: str = "") -> None:
    """What a model said to the questions of every set."""
    rows = [
        {"set": name, "id": f"{name}/{i}", "question": f"What did {name} author {i} write?{question}",
         "answer": f"Book {i} of {name}.", "generation": f"{answer} ({name} {i})", "probability": 0.5,
         "rougeL_recall": i / each}
        for name in SETS for i in range(each)
    ]  # fmt: skip
    file = path / "eval/tofu/examples.parquet"
    file.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), file)


def metrics(gone: float, kept: float, dice: random.Random) -> dict[str, float | None]:
    """Of a model that forgot this share and kept that share, with noise."""
    noise = lambda: dice.gauss(0, 0.015)  # noqa: E731
    found: dict[str, float | None] = {"train/loss": 1 - gone, "run/seconds": 100.0}
    for name in SETS:
        level = 0.95 * (1 - gone) + 0.04 if name == "forget" else 0.9 * kept
        for metric, scale in (("probability", 1.0), ("rougeL_recall", 0.95), ("extraction_strength", 0.7)):
            found[f"tofu/{name}/{metric}"] = min(max(scale * level + noise(), 0.001), 1.0)
        truth = 0.5 + 0.25 * gone if name == "forget" else 0.45 * kept
        found[f"tofu/{name}/truth_ratio"] = truth + noise()
    quality = -16 * (1 - gone) ** 2 - 6 * max(0.0, gone - 0.92) + 4 * noise()
    found |= {
        "tofu/forget_quality": 10 ** min(quality, -0.02),
        "tofu/forget_quality_log10": min(quality, -0.02),
        "tofu/model_utility": 0.65 * kept + noise(),
        "tofu/privleak": -100 * (1 - gone) + 40 * max(0.0, gone - 0.8) + 100 * noise(),
        "tofu/mia/min_k": 0.5 + 0.5 * (1 - gone) + noise(),
        "judged/forget_efficacy": gone * (1 - abs(noise())),
        "judged/utility": kept * (1 - abs(noise())),
    }
    return found


def write_anchors(root: Path) -> dict[str, str]:
    """The evaluations of target and retain model and a run that built one; returns their folders by role."""
    dice = random.Random(7)
    write_run(root / "finetune-full", method="finetune", role="build the target", results={"train/loss": 0.1})
    for name, gone in (("target", 0.0), ("retain", 0.9)):
        role = f"evaluate the {name}{' model' if name == 'retain' else ''}"
        results = metrics(gone, 1.0, dice) | ({"tofu/forget_quality": None} if name == "retain" else {})
        write_examples(
            write_run(root / f"none-{name}", method="none", role=role, results=results), f"The {name}"
        )
    return {"target": str(root / "none-target"), "retain": str(root / "none-retain")}


def curve(gone: float, kept: float, steps: int, dice: random.Random) -> list[dict[str, Any]]:
    """Its loss at each step, and metrics four times on the way."""
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        share = step / steps
        loss = 2.0 - 1.5 * gone * share + dice.gauss(0, 0.05)
        row = {"step": step, "epoch": 10 * share, "loss": loss, "loss/forget": 0.6 * loss, "lr": 1e-5}
        if step % (steps // 4) == 0:
            row["tofu/forget/probability"] = 1 - gone * share
            row["tofu/model_utility"] = 0.65 * (1 - (1 - kept) * share)
            row["tofu/forget_quality"] = 10 ** (-16 * (1 - gone * share) ** 2)
        rows.append(row)
    return rows


def write_sweep(
    root: Path, *, methods: int = 10, rates: int = 3, betas: int = 2, seeds: int = 5, steps: int = 80,
    question: str = "",
) -> Path:  # fmt: skip
    """methods × rates × betas × seeds runs with their target and retain model."""
    baselines = write_anchors(root)
    for m, method in enumerate(METHODS[:methods]):
        for r in range(rates):
            for b in range(betas):
                gone = min(0.98, 0.35 + 0.05 * m + 0.15 * r + 0.05 * b)
                kept = max(0.05, 1 - 0.02 * ((m * 7) % 10) - 0.14 * r**1.5 * (1 + 0.1 * m) - 0.03 * b)
                for seed in range(seeds):
                    dice = random.Random(f"{method} {r} {b} {seed}")
                    found = metrics(gone, kept, dice)
                    if m == 3 and seed == 0:
                        found["tofu/privleak"] = None  # could not be measured
                    run = write_run(
                        root / f"{method}-{r}-{b}-{seed}", method=method, seed=seed, lr=[1e-5, 2e-5, 5e-5][r],
                        keys={"forget": {"objective": method, "beta": [0.1, 0.5][b]}}, results=found,
                        baselines=baselines, rows=curve(gone, kept, steps, dice),
                    )  # fmt: skip
                    write_examples(run, f"{method} says something", question=question)
    (root / "begun").mkdir()
    (root / "begun/history.jsonl").write_text('{"step": 3, "loss": 1.0}\n')
    return root
