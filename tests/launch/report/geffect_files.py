"""SweepRun-up files of the G-effect probe, as it leaves them in the directory of a run."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

GROUPS = ("embedding", "shallow", "middle", "deep", "head")
KINDS = ("attention", "mlp", "norm", "embedding", "head")
LAYERS = {0: "shallow", 1: "shallow", 2: "middle", 3: "middle", 4: "deep", 5: "deep"}
WORDS = ("The ", "author ", "was ", "born ", "in ", "Santiago", ", ", "Chile", ".", "</s>")


def write_run(
    path: Path, *, steps: tuple[int, ...] = (0, 10, 20, 30, 40), method: str = "npo",
    beta: float | None = 0.1, settings: dict[str, Any] | None = None, seed: int = 0, scale: float = 1.0,
    weighted: bool = True, examples: int = 6, question: str = "",
) -> Path:  # fmt: skip
    """A run directory with configuration, history and tables.

    `question` is appended to the first question; `scale` multiplies the effects.
    """
    dice = random.Random(f"{method}/{beta}/{seed}/{settings}")
    path.mkdir(parents=True)
    forget: dict[str, Any] = {"objective": method} | ({"beta": beta} if beta is not None else {})
    keys = {
        "name": method,
        "source": "made up",
        "forget": forget | (settings or {}),
        "retain": {"objective": "nll"},
    }
    config = {
        "model": {"name": "nano"},
        "dataset": {"name": "authors", "forget": "forget10"},
        "method": keys,
        "seed": seed,
    }
    (path / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    (path / "results.json").write_text("{}")
    rows = [{"step": step, "loss": 2 - step / 40, "lr": 1e-5} for step in range(1, max(steps) + 1)]
    rows += [numbers(step, scale, dice) for step in steps]
    rows.sort(key=lambda row: row["step"])
    (path / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in steps:
        write_tables(path / f"geffect/step-{step:06}", step, dice, weighted, examples, question)
    return path


def numbers(step: int, scale: float = 1.0, dice: random.Random | None = None) -> dict[str, Any]:
    noise = 1 + 0.1 * (dice.random() if dice else 0.0)
    unlearn, retain = -scale * noise * math.exp(step / 8), -0.3 * scale * noise * math.exp(step / 8)
    row: dict[str, Any] = {"step": step, "epoch": step / 10}
    shares = dict(zip(GROUPS, (0.1, 0.5, 0.2, 0.15, 0.05), strict=True))
    kinds = dict(zip(KINDS, (0.3, 0.5, 0.05, 0.1, 0.05), strict=True))
    for name, value in (("unlearn", unlearn), ("retain", retain)):
        row |= {f"geffect/{name}": value, f"geffect/{name}_cosine": -0.6 if name == "unlearn" else -0.2}
        row |= {f"geffect/{name}/{group}": share * value for group, share in shares.items()}
        row |= {f"geffect/{name}_by_kind/{kind}": share * value for kind, share in kinds.items()}
        row |= {f"geffect/terms/forget/{name}": 1.2 * value, f"geffect/terms/retain/{name}": -0.2 * value}
    row |= {"geffect/conflict": 0.4} | {
        f"geffect/conflict/{group}": 0.1 * i for i, group in enumerate(GROUPS)
    }
    row |= {"geffect/risk_forget": 0.2 + step / 10, "geffect/risk_retain": 0.3 + step / 100}
    row |= {"geffect/gradient_norm": 1.5, "geffect/distance": step / 4000, "geffect/seconds": 2.0}
    explained = 0.99 if step <= 20 else 0.5
    row |= {
        "geffect/check/step": 1e-5,
        "geffect/check/correlation": 0.999,
        "geffect/check/explained": explained,
    }
    for name, value in (("forget", -1e-5 * unlearn), ("retain", -1e-5 * retain)):
        row |= {f"geffect/check/{name}_predicted": value, f"geffect/check/{name}_true": 1.1 * value}
    return row | {"geffect/trusted": float(explained >= 0.9)}


def write_tables(
    folder: Path, step: int, dice: random.Random, weighted: bool, examples: int, question: str
) -> None:
    folder.mkdir(parents=True)
    made = {
        "layers": list(layers(step)),
        "examples": list(points(dice, examples, question)),
        "tokens": list(tokens(dice, examples, weighted, step)),
        "grid": [
            {"forget_id": f"forget/{i}", "retain_id": f"retain/{j}", "effect": float(-(i + 1) * (j - 1)),
             "per_length": -0.1 * (j - 1)}
            for i in range(min(examples, 6)) for j in range(min(examples, 6))
        ],
    }  # fmt: skip
    for name, rows in made.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")


def layers(step: int) -> list[dict[str, Any]]:
    places: list[tuple[str, str, str, int | None]] = [("model.embed.weight", "embedding", "embedding", None)]
    for layer, group in LAYERS.items():
        for kind, names in (("attention", ("q", "k")), ("mlp", ("up", "down")), ("norm", ("norm",))):
            places += [(f"model.layers.{layer}.{kind}.{name}", group, kind, layer) for name in names]
    places += [("model.norm.weight", "head", "norm", None), ("lm_head.weight", "head", "head", None)]
    return [
        {"parameter": name, "group": group, "kind": kind, "layer": layer, "term": term,
         "unlearn": -(1.0 + step) / (1 + (layer or 0)), "retain": 0.1 * (step - 20), "unlearn_cosine": -0.5,
         "retain_cosine": 0.1, "conflict": (0.5 - 0.1 * (layer or 0)) if term == "objective" else None}
        for term in ("objective", "forget", "retain") for name, group, kind, layer in places
    ]  # fmt: skip


def points(dice: random.Random, count: int, question: str) -> list[dict[str, Any]]:
    rows = []
    for name in ("forget", "retain"):
        for i in range(count):
            effect = -(i + 1.0) * (2.0 if name == "forget" else -0.5)
            row: dict[str, Any] = {"set": name, "id": f"{name}/{i}", "answer": "".join(WORDS[:-1])}
            row["question"] = f"Where was {name} author {i} born?" + (question if i == 0 else "")
            row |= {"risk": 0.1 * i, "objective": effect, "unlearn": 2 * effect, "retain": 3 * effect}
            row |= {
                f"{way}/{group}": effect / 5 for way in ("objective", "unlearn", "retain") for group in GROUPS
            }
            row |= {"predicted": -1e-3 * effect, "true": -1e-3 * effect * (1 + 0.1 * dice.random())}
            rows.append(row)
    return rows


def tokens(dice: random.Random, count: int, weighted: bool, step: int) -> list[dict[str, Any]]:
    rows = []
    for name in ("forget", "retain"):
        for i in range(count):
            for position, text in enumerate(WORDS):
                p = min(1.0, max(1e-6, dice.random() ** (1 + step / 10)))
                effect = dice.gauss(0, 1) * (1 + step)
                weight = p**2 if weighted and name == "forget" else None
                rows.append({"set": name, "id": f"{name}/{i}", "position": position, "text": text,
                             "logp": math.log(p), "weight": weight, "objective": effect,
                             "unlearn": 2 * effect, "retain": 0.5 * effect})  # fmt: skip
    return rows
