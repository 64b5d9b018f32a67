"""What the directory of a run holds of what DESIGN §5 names, as a report reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import OmegaConf

from eval.metric_catalog import learn
from unlearn.reading import lines_of

Results = dict[str, float | None]
Example = dict[str, Any]
ExampleKey = tuple[str, str, str]
"""Benchmark, set and id."""


@dataclass
class Run:
    """One directory; an empty part where the file is absent.

    `examples` are those of benchmarks that generate. `problems` are sentences by benchmark. `words` are the
    tokenizers of ROUGE by `benchmark/set`.
    """

    role: str
    results: Results = field(default_factory=dict)
    examples: dict[ExampleKey, Example] = field(default_factory=dict)
    problems: dict[str, list[str]] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)


def load(path: Path, role: str) -> Run:
    """Raises ValueError naming a file that cannot be read."""
    results = path / "results.json"
    run = Run(role)
    if results.exists():
        run.results = {
            key: value
            for key, value in _json(results).items()
            if value is None or isinstance(value, (int, float))
        }
    for file in sorted(path.glob("eval/*/examples.parquet")):
        run.examples |= {(file.parent.name, str(row["set"]), str(row["id"])): row for row in _rows(file)}
    run.problems = problems(path)
    for file in sorted(path.glob("eval/*/words.json")):
        run.words |= {f"{file.parent.name}/{name}": str(words) for name, words in _json(file).items()}
    return run


def problems(path: Path) -> dict[str, list[str]]:
    """What the evaluations at the end of a run could not measure, and why: sentences by benchmark."""
    found: dict[str, list[str]] = {}
    for file in sorted(path.glob("eval/**/problems.json")):
        where = file.parent.relative_to(path / "eval")
        if not where.parts[0].startswith("step-"):  # told by the evaluation at the end as well
            found[where.as_posix()] = [str(text) for text in _json(file).get("problems", [])]
    return found


def history(run_dir: Path) -> list[dict[str, Any]]:
    """Rows by step: those of one step merged; what a resumed run repeats counts as it was last."""
    file = run_dir / "history.jsonl"
    lines = [*lines_of(file.read_text(encoding="utf-8"))] if file.exists() else []
    steps: dict[int, dict[str, Any]] = {}
    for number, line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number == lines[-1][0]:  # cut off while it was written
                break
            raise ValueError(f"{file}, line {number}, is not JSON: {error}") from error
        steps.setdefault(row["step"], {}).update(row)
    return [steps[step] for step in sorted(steps)]


def configuration(run_dir: Path) -> tuple[str, Mapping[str, Any]]:
    """Return the text of config.yaml and what it says; plug-ins of your own are imported."""
    file = run_dir / "config.yaml"
    if not file.exists():
        return "", {}
    config: Any = OmegaConf.to_container(OmegaConf.load(file))
    config = config if isinstance(config, dict) else {}
    learn(config)
    return file.read_text(encoding="utf-8"), config


def _rows(file: Path) -> list[Example]:
    """A benchmark's rows, none where it has no generations."""
    try:
        schema = pq.read_schema(file)
        if not {"set", "id", "generation"} <= set(schema.names):
            return []
        columns = [each.name for each in schema if not pa.types.is_nested(each.type)]
        rows: list[Example] = pq.read_table(file, columns=columns).to_pylist()
    except OSError as error:
        raise ValueError(f"{file} cannot be read as parquet: {error}; evaluate the run again") from error
    return rows


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
