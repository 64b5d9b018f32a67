"""Records of a model's answers: one parquet file per request, `<directory>/records/<name>.parquet`.

A file holds the key of its request. It is written atomically. pyarrow is imported with the first file: it
takes 30 MiB, which a training has no use for.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from eval.collection.ragged import Ragged
from eval.collection.requests import Answer, Prompt, Request
from unlearn.errors import UserError
from unlearn.files import replacing

if TYPE_CHECKING:
    import pyarrow as pa

    from unlearn.data.tokenization import Encoder

log = logging.getLogger(__name__)

_KEY, _TOKENIZER = b"unlearn.request", b"unlearn.tokenizer"
TOKEN_COLUMNS = ("logp", "correct", "mean", "variance")


class RecordsError(UserError):
    """Records are missing or belong to other examples; the message names file and example."""


class BrokenRecords(RecordsError):
    """A file of records cannot be read."""


@dataclass(frozen=True)
class LikelihoodRecords:
    """Columns per answer token, with the end token where `ended`; see `unlearn.passes.forward.TokenRecord`.

    An answer that could not be scored has no tokens; `problem` says why.
    """

    example: list[str]
    slot: np.ndarray
    problem: Sequence[str | None]
    logp: Ragged
    correct: Ragged
    mean: Ragged
    variance: Ragged
    ended: np.ndarray

    def select(self, items: Sequence[Answer]) -> LikelihoodRecords:
        """Return the records of these items, in their order."""
        rows = _by_slot(self.example, self.slot, items)
        return LikelihoodRecords(
            example=[self.example[i] for i in rows],
            slot=self.slot[rows],
            problem=[self.problem[i] for i in rows],
            ended=self.ended[rows],
            **{column: getattr(self, column).take(rows) for column in TOKEN_COLUMNS},
        )


@dataclass(frozen=True)
class NormRecords:
    """Gradient norms [E]; NaN where there is none, and `problem` says why."""

    example: list[str]
    slot: np.ndarray
    problem: Sequence[str | None]
    norm: np.ndarray

    def select(self, items: Sequence[Answer]) -> NormRecords:
        """Return the records of these items, in their order."""
        rows = _by_slot(self.example, self.slot, items)
        return NormRecords(
            [self.example[i] for i in rows], self.slot[rows], [self.problem[i] for i in rows], self.norm[rows]
        )


@dataclass(frozen=True)
class GenerationRecords:
    """`text` is None where nothing could be generated; `truth` is the true answer's beginning, if requested.

    `sample` counts the samples of a prompt, which follow each other.
    """

    example: list[str]
    sample: np.ndarray
    problem: Sequence[str | None]
    text: Sequence[str | None]
    truth: Sequence[str | None]

    def select(self, items: Sequence[Prompt]) -> GenerationRecords:
        """Return the records of these items, in their order."""
        samples = int(self.sample.max()) + 1 if len(self.sample) else 1
        row_of = {key: row for row, key in enumerate(zip(self.example, self.sample.tolist(), strict=True))}
        rows = _rows(row_of, [(item.example, k) for item in items for k in range(samples)])
        return GenerationRecords(
            [self.example[i] for i in rows], self.sample[rows],
            *([column[i] for i in rows] for column in (self.problem, self.text, self.truth)),
        )  # fmt: skip


AnyRecords: TypeAlias = LikelihoodRecords | NormRecords | GenerationRecords
R = TypeVar("R", LikelihoodRecords, NormRecords, GenerationRecords)


@dataclass(frozen=True)
class Records:
    """The records under `<directory>/records`, each file read once.

    The methods that return records raise `RecordsError` where the file is absent, broken or of another kind.
    """

    directory: Path

    def likelihood(self, name: str) -> LikelihoodRecords:
        """Return the records of a `Likelihood` request."""
        return self._read(name, LikelihoodRecords, "likelihoods")

    def norms(self, name: str) -> NormRecords:
        """Return the records of a `GradientNorm` request."""
        return self._read(name, NormRecords, "gradient norms")

    def generation(self, name: str) -> GenerationRecords:
        """Return the records of a `Generation` request."""
        return self._read(name, GenerationRecords, "generations")

    def any(self, name: str) -> AnyRecords:
        """Return the records of a request of any kind."""
        return self._once(name)

    def has(self, name: str) -> bool:
        """Return whether there is a file of the request."""
        return record_path(self.directory, name).is_file()

    @property
    def tokenizer(self) -> str | None:
        """Hash of the tokenizer that the records were made with; None without records."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        file = next(iter(sorted((self.directory / "records").rglob("*.parquet"))), None)
        try:
            metadata = (pq.read_schema(file).metadata or {}) if file else {}
        except (OSError, pa.ArrowException):  # reading the records reports it
            return None
        return metadata[_TOKENIZER].decode() if _TOKENIZER in metadata else None

    @cached_property
    def _once(self) -> Callable[[str], AnyRecords]:
        read: dict[str, AnyRecords] = {}

        def once(name: str) -> AnyRecords:
            if name not in read:
                read[name] = read_records(self.directory, name)
            return read[name]

        return once

    def _read(self, name: str, kind: type[R], content: str) -> R:
        records = self._once(name)
        if not isinstance(records, kind):
            raise RecordsError(f"{record_path(self.directory, name)} does not hold {content}")
        return records


def record_path(directory: Path, name: str) -> Path:
    """Return the file of a request's records below the directory of a model and a benchmark."""
    return directory / "records" / f"{name}.parquet"


def request_key(request: Request, encoder: Encoder) -> str:
    """Hash a request with the prompt format and tokenizer settings; the model is not part of it."""
    content = {
        "kind": type(request).__name__,
        "request": asdict(request),
        "format": encoder.format.identity(),
        "chat_template": encoder.tokenizer.chat_template,
        "end": encoder.end_id,
        "max_length": encoder.max_length,
        **({"suffix": encoder.suffix} if encoder.suffix else {}),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def tokenizer_key(encoder: Encoder) -> str:
    """Hash the tokenizer's vocabulary."""
    vocabulary = json.dumps(sorted(encoder.tokenizer.get_vocab().items()))
    return hashlib.sha256(vocabulary.encode()).hexdigest()[:16]


def is_current(directory: Path, request: Request, encoder: Encoder) -> bool:
    """Whether the request's records exist, are complete, and were made from the same content."""
    path = record_path(directory, request.name)
    try:
        metadata = _table(path).schema.metadata or {}
    except FileNotFoundError:
        return False
    except BrokenRecords as error:
        log.warning("%s: its records are computed again", error)
        return False
    return bool(metadata.get(_KEY, b"").decode() == request_key(request, encoder))


def write_records(directory: Path, request: Request, encoder: Encoder, records: AnyRecords) -> None:
    """Write the records of a request, atomically."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {"example": pa.array(records.example, pa.string())}
    columns["problem"] = pa.array(records.problem, pa.string())
    if isinstance(records, LikelihoodRecords):
        columns["slot"] = records.slot
        columns |= {column: getattr(records, column).to_arrow() for column in TOKEN_COLUMNS}
        columns["ended"] = records.ended
    elif isinstance(records, NormRecords):
        columns |= {"slot": records.slot, "norm": records.norm}
    else:
        columns["sample"] = records.sample
        columns |= {name: pa.array(getattr(records, name), pa.string()) for name in ("text", "truth")}
    metadata = {_KEY: request_key(request, encoder), _TOKENIZER: tokenizer_key(encoder)}
    table = pa.table(columns).replace_schema_metadata(metadata)
    with replacing(record_path(directory, request.name)) as path:
        pq.write_table(table, path, compression="zstd")


def read_records(directory: Path, name: str) -> AnyRecords:
    """Read the records of a request.

    Raises:
        RecordsError: there are none, or the file is broken.
    """
    path = record_path(directory, name)
    try:
        table = _table(path)
    except FileNotFoundError:
        raise RecordsError(f"no records at {path}: evaluate the model first") from None
    except BrokenRecords as error:
        raise RecordsError(
            f"{error}. Remove it and the results.json of its run, and start again: only it is computed again"
        ) from error
    example, problem = table["example"].to_pylist(), table["problem"].to_pylist()
    if "text" in table.column_names:
        text, truth = table["text"].to_pylist(), table["truth"].to_pylist()
        return GenerationRecords(example, table["sample"].to_numpy(), problem, text, truth)
    slot = table["slot"].to_numpy()
    if "norm" in table.column_names:
        return NormRecords(example, slot, problem, table["norm"].to_numpy())
    columns = {column: Ragged.from_arrow(table[column]) for column in TOKEN_COLUMNS}
    return LikelihoodRecords(example, slot, problem, **columns, ended=table["ended"].to_numpy())


def _table(path: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path).read()
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        reason = str(error).strip().split("\n")[0]
        raise BrokenRecords(f"{path} is broken, perhaps cut short ({reason})") from error


def _by_slot(example: Sequence[str], slot: np.ndarray, items: Sequence[Answer]) -> list[int]:
    row_of = {key: row for row, key in enumerate(zip(example, slot.tolist(), strict=True))}
    return _rows(row_of, [(item.example, item.slot) for item in items])


def _rows(row_of: dict[Any, int], keys: Sequence[Any]) -> list[int]:
    missing = [key for key in keys if key not in row_of]
    if missing:
        raise RecordsError(
            f"{len(missing)} of {len(keys)} examples have no record, first {missing[0]!r}: the records are "
            "of another set or split; evaluate again, and the retain model on the same forget set"
        )
    return [row_of[key] for key in keys]
