"""Read what the evaluations of a run left in its directory: metrics, answers, problems."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from launch.run.config_file import read_config
from unlearn.files import read_json
from unlearn.run_dir import RunDir

Results = dict[str, float | None]
Example = dict[str, Any]
ExampleKey = tuple[str, str, str]
"""Benchmark, set and id."""


@dataclass
class Run:
    """One run directory; a part is empty where its file is absent.

    `examples` are those of benchmarks that generate. `problems` are sentences by benchmark. `words` are the
    tokenizers of ROUGE by `benchmark/set`.
    """

    role: str
    results: Results = field(default_factory=dict)
    examples: dict[ExampleKey, Example] = field(default_factory=dict)
    problems: dict[str, list[str]] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)


def load(path: Path, role: str) -> Run:
    """Read the evaluations of a run directory.

    Raises:
        ValueError: a file cannot be read; with its name.
    """
    run = Run(role, RunDir(path).read_results(), problems=problems(path))
    for benchmark, rows in example_rows(path, _plain_columns):
        run.examples |= {(benchmark, str(row["set"]), str(row["id"])): row for row in rows}
    for file in _of_last_evaluation(path, "*/words.json"):
        run.words |= {f"{file.parent.name}/{name}": str(words) for name, words in read_json(file).items()}
    return run


def problems(path: Path) -> dict[str, list[str]]:
    """Return what the evaluations at the end of a run could not measure, and why: sentences by benchmark.

    Raises:
        BrokenFile: a problems.json is not JSON, or config.yaml cannot be read.
    """
    folder = RunDir(path).eval
    sentences: dict[str, list[str]] = {}
    for file in _of_last_evaluation(path, "**/problems.json"):
        where = file.parent.relative_to(folder)
        # The evaluation at the end reports those of the evaluations on the way as well.
        if not where.parts[0].startswith("step-") and where.parts[0] != "selection":
            sentences[where.as_posix()] = [str(text) for text in read_json(file).get("problems", [])]
    return sentences


def example_rows(
    path: Path, columns: Callable[[pa.Schema], Sequence[str]]
) -> Iterator[tuple[str, list[Example]]]:
    """Yield the rows of each benchmark's examples.parquet by the benchmark's name.

    `columns` chooses what is read; a benchmark of which it chooses nothing is left out.

    Raises:
        ValueError: a file cannot be read; with its name.
    """
    for file in _of_last_evaluation(path, "*/examples.parquet"):
        try:
            with pq.ParquetFile(file) as opened:
                chosen = list(columns(opened.schema_arrow))
                rows: list[Example] = opened.read(chosen).select(chosen).to_pylist() if chosen else []
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{file} cannot be read as parquet: {error}; evaluate the run again") from error
        if chosen:
            yield file.parent.name, rows


def _of_last_evaluation(path: Path, pattern: str) -> list[Path]:
    """Return the files below a run's `eval` but those that an evaluation of other benchmarks left there."""
    run = RunDir(path)
    files = sorted(run.eval.glob(pattern))
    evaluation = read_config(run).get("eval") if files and run.config.is_file() else None
    if not isinstance(evaluation, Mapping):  # what was evaluated last is not known
        return files
    variants = evaluation.get("variants") or {}
    last = {*(evaluation.get("benchmarks") or {}), *(name.rpartition(".")[2] for name in variants)}
    return [file for file in files if file.relative_to(run.eval).parts[0] in last]


def has_answers(schema: pa.Schema) -> bool:
    """Whether a benchmark's rows hold what the model answered."""
    return {"set", "id", "generation"} <= set(schema.names)


def _plain_columns(schema: pa.Schema) -> list[str]:
    """The columns that are not lists, of a benchmark that generates."""
    if not has_answers(schema):
        return []
    return [column.name for column in schema if not pa.types.is_nested(column.type)]
