"""One run of a comparison, as its directory holds it; what cannot be compared says why."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from eval.metric_catalog import direction, is_detail, learn, split_key
from launch.report.run_files import Results, history
from launch.report.settings import flat

Kind = Literal["run", "target", "retain model"]
ANCHORS: tuple[Kind, ...] = ("target", "retain model")

# Of a configuration, what makes numbers another thing to average over. The seed stands apart.
_SETTINGS = re.compile(r"(model|dataset|method)\..+|eval\.(limit|max_new_tokens)|hardware\.dtype")
_NO_SETTINGS = re.compile(r"method\.(name|source)|model\.(trust_remote_code|attention)|model\.published\..*")
TASK = re.compile(r"(model|dataset|data|eval)(\.(?!lora\.|lr_scale).+)?|hardware\.dtype")
"""Settings that a target and a retain model have too: runs compare where these are the same."""

_NOT_MEASURED = ("train", "run", "geffect", "loss")


class Unusable(Exception):
    """Why a directory or a line of an export is no run to compare."""


@dataclass(frozen=True)
class ComparedRun:
    """`settings` are flat and dotted, without seed, method name and null values.

    `sections`: the fields of model, dataset, method … that its configuration has, as `method.auto_lr`; None
    stands for all. One that is absent came with a later release, and what it would have been is not known.
    `beside`: where the target's and the retain model's evaluations were when the run was made. `rows` are
    those of its history where it has no directory to read them from.
    """

    name: str
    method: str
    settings: Mapping[str, Any]
    seed: Any
    results: Results = field(repr=False)
    kind: Kind = "run"
    path: Path | None = None
    beside: Mapping[str, str] = field(default_factory=dict)
    sections: Collection[str] | None = None
    rows: Sequence[Mapping[str, Any]] = ()

    def value(self, key: str) -> Any:
        """Of a setting, or of `method` and `seed`; None for one that it does not have."""
        return {"method": self.method, "seed": self.seed}.get(key, self.settings.get(key))

    def knows(self, key: str) -> bool:
        """Whether its configuration says what the setting is, be it null."""
        return self.sections is None or ".".join(key.split(".")[:2]) in self.sections

    def history(self) -> Sequence[Mapping[str, Any]]:
        """Raises ValueError naming a file that cannot be read."""
        return self.rows if self.path is None else history(self.path)


def differing(runs: Sequence[ComparedRun]) -> list[str]:
    """Settings that not all of the runs that know of them share."""
    values: dict[str, set[str]] = {key: set() for run in runs for key in run.settings}
    for run in runs:
        for key, found in values.items():
            if run.knows(key):
                found.add(repr(run.settings.get(key)))
    return sorted(key for key, found in values.items() if len(found) > 1)


def read_run(path: Path) -> ComparedRun:
    """A finished run, the evaluation of a target or of a retain model.

    Raises:
        Unusable: it is none of these, or a file of it cannot be read.
    """
    config = _configuration(path)
    job = config.get("job") if isinstance(config.get("job"), Mapping) else {}
    assert isinstance(job, Mapping)
    kind = kind_of(job.get("role", "run"))
    beside = job.get("beside") if isinstance(job.get("beside"), Mapping) else {}
    return ComparedRun(
        name=path.name,
        method=_method(config) or path.name,
        settings=settings_of(flat(config)),
        seed=config.get("seed"),
        results=_results(path),
        kind=kind,
        path=path,
        sections={f"{a}.{b}" for a, part in config.items() if isinstance(part, Mapping) for b in part},
        beside={k: v for k, v in (beside or {}).items() if isinstance(v, str)},
    )


def kind_of(role: Any) -> Kind:
    """What a run's part in its plan makes of it.

    Raises:
        Unusable: it was made for other runs alone.
    """
    kind: Kind = next((name for name in ANCHORS if role == f"evaluate the {name}"), "run")
    if role != "run" and kind == "run":
        raise Unusable(f"made for other runs ({role})")
    return kind


def settings_of(every: Mapping[str, Any]) -> dict[str, Any]:
    """Those keys of a flat configuration of ours that tell runs apart."""
    kept = [key for key in every if _SETTINGS.fullmatch(key) and not _NO_SETTINGS.fullmatch(key)]
    return {key: plain(every[key]) for key in kept if every[key] is not None}


def plain(value: Any) -> Any:
    """10.0 and 10 are the same setting, and so are a list and a tuple."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return int(value)
    return tuple(map(plain, value)) if isinstance(value, list | tuple) else value


def measured(results: Results) -> list[str]:
    """The keys that an evaluation left; of bare names those that are known."""
    return [
        key
        for key in results
        if not is_detail(key) and (split_key(key)[0] not in (*_NOT_MEASURED, "") or direction(key))
    ]


def _configuration(path: Path) -> dict[str, Any]:
    file = path / "config.yaml"
    if not file.is_file():
        what = "the directory is empty" if not any(path.iterdir()) else "no config.yaml in it"
        raise Unusable(f"{what}: no run of this program, or one that never began")
    try:
        config = yaml.load(file.read_text(encoding="utf-8"), Loader=_loader())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise Unusable(f"config.yaml cannot be read: {_first_line(error)}") from error
    if not isinstance(config, dict):
        raise Unusable("config.yaml holds no configuration")
    learn(config)
    return config


@cache
def _loader() -> type[Any]:
    """libyaml's safe loader, with which 300 runs take a quarter of a second, and 1e-5 as a number."""
    base: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):
        pass

    number = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    return Loader


def _method(config: Mapping[str, Any]) -> str:
    method = config.get("method")
    name = method.get("name") if isinstance(method, Mapping) else method
    return str(name) if name else ""


def _results(path: Path) -> Results:
    file = path / "results.json"
    if not file.is_file():
        raise Unusable(
            f"not complete, no results.json{_last_step(path)}; the same command again continues it"
        )
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Unusable(f"results.json cannot be read: {_first_line(error)}") from error
    if not isinstance(found, dict):
        raise Unusable("results.json holds no metrics")
    results = dict(numbers(found))
    if not measured(results):
        raise Unusable("nothing was measured in it (eval=none?): evaluate it")
    return results


def numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """The metrics among them; None for one that could not be measured."""
    for key, value in values.items():
        if isinstance(value, bool):
            continue
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            yield key, None
        elif isinstance(value, int | float):
            yield key, value


def _last_step(path: Path) -> str:
    try:
        rows = history(path)
    except (ValueError, OSError, KeyError, TypeError):
        return ""
    return f", last logged step {rows[-1]['step']}" if rows else ""


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
