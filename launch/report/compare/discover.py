"""Find the runs of a comparison and their baselines, and tell what is left out and why."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from launch.report import kept
from launch.report.compare.published_models import is_published, read_published
from launch.report.compare.runs import ANCHORS, ComparedRun, RunRole, kind_of, read_run
from launch.report.compare.wandb_exports import ENDINGS, read_export
from launch.report.compare.wandb_offline import read_offline
from launch.report.discover import LeftOut, paths_of, run_directories
from launch.report.packed import ENDING
from launch.report.run_groups import Unusable, first_of_equals
from unlearn.errors import UserError, did_you_mean, listed
from unlearn.run_dir import RunDir

_NAMED = 10  # reasons in the message of a comparison without runs

BaselineDir = tuple[RunRole, Path]
"""The directory of a target's or a retain model's evaluation."""


@dataclass
class Discovered:
    """Runs, the evaluations of their targets and retain models (`anchors`), and what is left out."""

    runs: list[ComparedRun] = field(default_factory=list)
    anchors: list[ComparedRun] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def find(arguments: Sequence[str], named: dict[RunRole, str] | None = None) -> Discovered:
    """Return the runs under these directories, patterns, archives and exports.

    named: directory or name of the run that is the target or the retain model, by kind.

    Raises:
        UserError: nothing is there, or nothing in it can be compared.
    """
    discovered = Discovered()
    every: list[ComparedRun] = []
    for source in _sources(arguments):
        for each in _read(source):
            if isinstance(each, ComparedRun):
                every.append(each)
            else:
                discovered.left_out.append(LeftOut(*each))
    every += _named_directories(named or {}, every)
    baselines = [each for run in every for each in baselines_of(run)]
    every = [
        replace(
            run,
            kind=_kind(run, set(baselines), named or {}),
            named=any(_is(run, name) for name in (named or {}).values()),
        )
        for run in every
    ]
    every = [replace(run, baselines={kind: str(path) for kind, path in baselines_of(run)}) for run in every]
    every += _further_anchors(every, baselines)
    for run, first in zip(every, first_of_equals(every, [run.kind for run in every]), strict=True):
        if first is not run:
            discovered.left_out.append(LeftOut(run.name, _repeated(run, first)))
        elif run.kind == "run":
            discovered.runs.append(run)
        else:
            discovered.anchors.append(run)
    if not discovered.runs:
        left_out = discovered.left_out
        reasons = listed((f"\n  {name}: {reason}" for name, reason in left_out), _NAMED, "")
        raise UserError(f"nothing to compare in {', '.join(arguments)}:{reasons or ' no run in it'}")
    return discovered


def _repeated(run: ComparedRun, first: ComparedRun) -> str:
    what = "the same configuration and seed" if run.kind == "run" else f"the same {run.kind}"
    exported = run.kind == "run" and run.method == "none"  # an export does not say what was evaluated
    hint = "; name the target and the retain model with --target and --retain" if exported else ""
    return f"{what} as {first.name}{hint}"


def _sources(arguments: Sequence[str]) -> list[Path]:
    """Run directories, folders of offline runs and files of exports, each once."""
    sources: dict[Path, None] = {}
    for argument in arguments:
        paths = paths_of(argument)
        if not paths:
            raise UserError(f"{argument}: no such directory, file or pattern")
        for path in paths:
            if path.is_file() and not path.name.endswith((*ENDINGS, ENDING)):
                if len(paths) > 1:  # a pattern also matches other files
                    continue
                raise UserError(
                    f"{path} is no run directory; of files, archives {ENDING} and exports "
                    f"{', '.join(ENDINGS)} are read"
                )
            inside = [path] if path.is_file() else list(run_directories(path))
            sources |= dict.fromkeys(source.resolve() for source in inside)
    return list(sources)


def _read(source: Path) -> Iterator[ComparedRun | tuple[str, str]]:
    """The runs of a directory, an archive or an export, or name and reason of what cannot be compared."""
    if source.name.endswith(ENDING):
        yield from _read_archive(source)
        return
    if source.is_file():
        yield from read_published(source) if is_published(source) else read_export(source)
        return
    try:
        offline = not RunDir(source).config.is_file() and any(source.glob("*.wandb"))
        yield read_offline(source) if offline else read_run(source)
    except Unusable as reason:
        yield source.name, str(reason)


def _read_archive(source: Path) -> Iterator[ComparedRun | tuple[str, str]]:
    for run in kept.read_archive(source):
        try:
            kind = kind_of(run.role)
        except Unusable as reason:
            yield run.name, str(reason)
        else:
            yield ComparedRun(run.name, run.method, run.settings, run.seed, run.results, kind)


def _named_directories(named: dict[RunRole, str], every: Sequence[ComparedRun]) -> list[ComparedRun]:
    """The anchors that were named by a directory outside of the given runs."""
    anchors = []
    for kind, name in named.items():
        if any(_is(run, name) for run in every):
            continue
        if not Path(name).is_dir():
            hint = did_you_mean(name, [run.name for run in every])
            raise UserError(f"{name}, named as the {kind}: no such directory, and no run of this name{hint}")
        try:
            anchors.append(read_run(Path(name).resolve()))
        except Unusable as reason:
            raise UserError(f"{name}, named as the {kind}: {reason}") from reason
    return anchors


def _is(run: ComparedRun, name: str) -> bool:
    return run.name == name or (run.path is not None and run.path == Path(name).resolve())


def _kind(run: ComparedRun, baselines: Collection[BaselineDir], named: Mapping[RunRole, str]) -> RunRole:
    """The kind that an option names, else that of a baseline of other runs, else the run's own."""
    for kind, name in named.items():
        if _is(run, name):
            return kind
    return next((kind for kind in ANCHORS if (kind, run.path) in baselines), run.kind)


def _further_anchors(every: Sequence[ComparedRun], baselines: Sequence[BaselineDir]) -> list[ComparedRun]:
    """The baselines of the runs that are not among the given directories."""
    known = {run.path for run in every}
    anchors = []
    for kind, path in dict.fromkeys(baselines):
        if path not in known:
            try:
                anchors.append(replace(read_run(path), kind=kind))
            except Unusable:  # the runs are compared without it
                continue
    return anchors


def baselines_of(run: ComparedRun) -> list[BaselineDir]:
    """Return the directories of its baselines: where they were, or next to the run if both were moved."""
    existing: list[BaselineDir] = []
    for kind in ANCHORS:
        stored = run.baselines.get(kind.split()[0], run.baselines.get(kind))
        if stored is not None and run.path is not None:
            candidates = (Path(stored).expanduser(), run.path.parent / Path(stored).name)
            existing += [(kind, path.resolve()) for path in candidates if path.is_dir()][:1]
    return existing
