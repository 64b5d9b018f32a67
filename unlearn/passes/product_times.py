"""Which of two kernels is the faster one for a matrix product on this CPU, measured once per machine.

PyTorch's own choice (MKL in most builds) and oneDNN differ by up to three times either way, depending on the
processor. The measured times are kept in the user's cache folder, so that all processes and later runs choose
alike: another kernel rounds differently.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from filelock import FileLock
from torch import Tensor

from unlearn.files import NoRoom, read_json, write_json
from unlearn.paths import user_path
from unlearn.processor import processor

log = logging.getLogger(__name__)

Kind = Literal["forward", "input", "weight"]
"""The product of a linear layer's forward, or of its gradient by the input or by the weight."""

_ROWS = {"few": 16, "many": 128}  # measured; from _MANY rows on there are many
_MANY = 64
_WIDTHS = 512, 1024  # inputs and outputs of what is measured, at most: time to measure is short
_TURNS = 2
_BUDGET = 0.3  # seconds that a process spends on measuring
_CLEARLY = 1.1  # times as fast: within this noise decides, and PyTorch's own choice stays


class Size(NamedTuple):
    """The size of a product: of a linear layer from `inputs` to `outputs`, over few or many rows."""

    kind: Kind
    rows: Literal["few", "many"]
    inputs: int
    outputs: int

    @classmethod
    def of(cls, kind: Kind, rows: int, inputs: int, outputs: int) -> Size:
        """Return the size at which a product of this size is measured."""
        return cls(
            kind, "many" if rows >= _MANY else "few", min(inputs, _WIDTHS[0]), min(outputs, _WIDTHS[1])
        )

    def __str__(self) -> str:
        return f"{self.kind}, {self.rows} rows, {self.inputs} to {self.outputs}"


class Times(NamedTuple):
    """Seconds of a product by PyTorch's choice and by oneDNN; None: oneDNN gave another result, or none."""

    pytorch: float
    onednn: float | None

    @property
    def gain(self) -> float:
        """How many times as fast oneDNN is; 0 where it cannot be used."""
        return self.pytorch / self.onednn if self.onednn else 0.0

    @property
    def prefers_onednn(self) -> bool:
        return self.gain >= _CLEARLY


def onednn(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return left [..., K] · right [M, K]ᵀ + bias by oneDNN, in fp32 on the CPU."""
    # The operator behind torch.compile's linear layers; no public one reaches oneDNN in fp32.
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], ""))


def prefers_onednn(size: Size) -> bool:
    """Return whether oneDNN is clearly faster for products of this size; measured where that is unknown."""
    table = _of_threads(torch.get_num_threads())
    if size not in table.known:
        table.learn([size])
    return size in table.known and table.known[size].prefers_onednn


def preferred(sizes: Iterable[Size]) -> set[Size]:
    """Return the sizes for which `prefers_onednn` is true; those that are unknown are measured together."""
    table = _of_threads(torch.get_num_threads())
    wanted = set(sizes)
    table.learn(sorted(wanted - table.known.keys(), key=lambda size: (size.rows != "many", size)))
    return {size for size in wanted if prefers_onednn(size)}


def bf16_gain() -> float:
    """Return how many times as fast products are in bf16 as in fp32; this CPU emulates bf16 below 1."""
    table = _of_threads(torch.get_num_threads())
    table.learn_bf16()
    return table.bf16_gain


def describe() -> list[str]:
    """Return lines on this processor and on what was measured on it, with any number of threads."""
    tables = [table for threads in range(1, 1 + (os.cpu_count() or 1)) if (table := _Table(threads)).lines()]
    lines = [on_machine()]
    for table in tables:
        lines += [f"kernels of linear layers, threads: {table.threads} ({table.file})", *table.lines()]
    return lines if tables else [*lines, "kernels of linear layers: the first run in fp32 measures them"]


def on_machine() -> str:
    """Return `machine` in a line, as what a figure was measured on."""
    facts = machine().items()
    return ", ".join(f"{name}={value}" if name.isupper() else f"{name} {value}" for name, value in facts)


def machine() -> dict[str, str]:
    """Return what decides about a kernel's speed: processor, instruction sets, torch's version, variables."""
    named = {"processor": processor(), "kernels": torch.backends.cpu.get_cpu_capability()}
    other = ("_NUM_THREADS", "_CACHE_CAPACITY")
    variables = {
        key: value
        for key, value in sorted(os.environ.items())
        if key.startswith(("ATEN_CPU", "ONEDNN_", "DNNL_", "MKL_")) and not key.endswith(other)
    }
    return {**named, "torch": torch.__version__, **variables}


def cache_folder() -> Path | None:
    """Return the folder of what is measured once per machine: `unlearn-lab` in the user's cache.

    None where neither HOME nor the system's users define a home directory.
    """
    folder = user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return None if str(folder).startswith("~") else folder / "unlearn-lab"


@cache
def _of_threads(threads: int) -> _Table:
    return _Table(threads)


@dataclass
class _Table:
    """The times of products with a number of threads, and the file that keeps them."""

    threads: int
    known: dict[Size, Times] = field(default_factory=dict)
    bf16_gain: float = 0.0  # 0: not measured
    spent: float = 0.0

    def __post_init__(self) -> None:
        facts = {**machine(), "threads": self.threads}
        digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        folder = cache_folder()
        self._facts, self.file = facts, None if folder is None else folder / f"products-{digest}.json"
        self._read()

    def learn(self, sizes: Sequence[Size]) -> None:
        """Measure these sizes, unless another process has; when time is up, one of each kind still."""
        if not sizes:
            return
        with self._locked():
            self._read()
            before = len(self.known)
            measure(Size("forward", "few", 16, 16))  # sets up both libraries
            for size in sizes:
                if size in self.known:
                    continue
                alike = [each for each in self.known if (each.kind, each.rows) == (size.kind, size.rows)]
                if alike and self.spent >= _BUDGET:  # stored too: the next process must not choose otherwise
                    self.known[size] = self.known[alike[-1]]
                    continue
                started = time.perf_counter()
                self.known[size] = times = measure(size)
                self.spent += time.perf_counter() - started
                log.debug("%s: oneDNN %.2f× as fast as PyTorch's choice", size, times.gain)
            if len(self.known) > before:
                self._write()

    def learn_bf16(self) -> None:
        """Measure the gain of bf16, unless another process has."""
        if self.bf16_gain:
            return
        with self._locked():
            self._read()
            if not self.bf16_gain:
                measure_bf16()  # sets up the library
                self.bf16_gain = measure_bf16()
                self._write()

    def lines(self) -> list[str]:
        lines = [f"  bf16: {self.bf16_gain:.2f}× as fast as fp32"] if self.bf16_gain else []
        gains: dict[str, list[float]] = {}
        for size, times in sorted(self.known.items()):
            gains.setdefault(f"{size.kind}, {size.rows} rows", []).append(
                times.gain if times.prefers_onednn else 0.0
            )
        for product, each in gains.items():
            most = f", up to {max(each):.2f}× as fast" if any(each) else ""
            lines.append(f"  {product}: oneDNN for {sum(map(bool, each))} of {len(each)} sizes{most}")
        return lines

    def _read(self) -> None:
        if self.file is None:
            return
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            stored = read_json(self.file)
            self.bf16_gain = float(stored["bf16_gain"])
            for key, pair in stored["seconds"].items():
                kind, rows, inputs, outputs = key.split()
                self.known[Size(kind, rows, int(inputs), int(outputs))] = Times(*pair)

    def _write(self) -> None:
        if self.file is None:
            return
        seconds = {" ".join(map(str, size)): list(times) for size, times in sorted(self.known.items())}
        with contextlib.suppress(OSError, NoRoom):  # without a cache every process measures
            write_json(self.file, {**self._facts, "bf16_gain": self.bf16_gain, "seconds": seconds})

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if self.file is None:
            yield
            return
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.file.with_name(f".{self.file.name}.lock"))
            lock.acquire()
        except OSError:
            yield
            return
        try:
            yield
        finally:
            lock.release()


@torch.no_grad()
def measure(size: Size) -> Times:
    """Time a product by both kernels, in turns, and compare their results."""
    left, right = _operands(size)
    expected = torch.mm(left, right.mT)
    try:
        agrees = _close(onednn(left, right), expected, terms=left.shape[1])
    except (RuntimeError, AttributeError):  # this build has no such operator
        agrees = False
    ways: dict[str, Callable[[], Any]] = {"pytorch": lambda: torch.mm(left, right.mT)}
    if agrees:
        ways["onednn"] = lambda: onednn(left, right)
    best = _seconds(ways)
    return Times(best["pytorch"], best.get("onednn"))


@torch.no_grad()
def measure_bf16() -> float:
    """Return how many times as fast a product of a linear layer is in bf16 as in fp32."""
    left, right = _operands(Size("forward", "many", *_WIDTHS))
    low = left.bfloat16(), right.bfloat16()
    seconds = _seconds(
        {"fp32": lambda: torch.mm(left, right.mT), "bf16": lambda: torch.mm(low[0], low[1].mT)}
    )
    return seconds["fp32"] / seconds["bf16"]


def _seconds(ways: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Return the least CPU seconds of each call, in turns on one thread: other work does not disturb them."""
    best = dict.fromkeys(ways, float("inf"))
    threads = torch.get_num_threads()
    torch.set_num_threads(
        1
    )  # several wait for each other where the machine is busy, in one kernel or the other
    try:
        for _ in range(_TURNS):
            for name, call in ways.items():
                started = time.thread_time()
                call()
                best[name] = min(best[name], time.thread_time() - started)
    finally:
        torch.set_num_threads(threads)
    return best


def _operands(size: Size) -> tuple[Tensor, Tensor]:
    """Return left [N, K] and right [M, K] as a linear layer has them for a product left · rightᵀ."""
    drawn = torch.Generator().manual_seed(0)  # a run's own random numbers stay
    rows = torch.randn(_ROWS[size.rows], size.inputs, generator=drawn)
    weight = torch.randn(size.outputs, size.inputs, generator=drawn)
    grad = torch.randn(_ROWS[size.rows], size.outputs, generator=drawn)
    pairs = {"forward": (rows, weight), "input": (grad, weight.mT), "weight": (grad.mT, rows.mT)}
    return pairs[size.kind]


def _close(computed: Tensor, expected: Tensor, terms: int) -> bool:
    tolerance = 8 * torch.finfo(expected.dtype).eps * terms**0.5 * float(expected.abs().max())
    return bool((computed - expected).abs().max() <= tolerance)
