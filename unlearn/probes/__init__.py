"""Probes: measurements during a training that do not change it.

A probe is a module of this package (see `_base.Probe`), chosen by `probe.name`.
"""

from __future__ import annotations

from unlearn import plugins
from unlearn.config import ProbeConfig, RunConfig, Section
from unlearn.data.sources import available
from unlearn.errors import ConfigError, did_you_mean
from unlearn.probes._base import WATCHED, Probe, WatchedRun
from unlearn.probes._model_folders import saved_models

__all__ = [
    "PROBES", "WATCHED", "Probe", "WatchedRun", "check", "completed", "make", "saved_models", "sets",
    "watched_sets",
]  # fmt: skip

KEY = "probe"
PROBES = plugins.Kind(__name__, "probe", "class", ("Options", "sets", "check", "begin", "due", "measure"))


def sets(cfg: ProbeConfig) -> tuple[str, ...]:
    """Return the sets of the data without which the chosen probe cannot measure.

    Raises:
        ConfigError: there is no such probe.
    """
    return _find(cfg).sets


def watched_sets(config: RunConfig) -> set[str]:
    """Return the sets that a run loads for its probe, as far as the dataset has them."""
    from unlearn.terms import training_sets  # with torch, which refusals do without

    if not config.probe.on:
        return set()
    method = config.probe.method
    own = set() if method is None else training_sets(config.model_copy(update={"method": method}))
    return own | ({*WATCHED, *sets(config.probe)} & set(available(config.dataset)))


def check(config: RunConfig) -> list[str]:
    """Return what is wrong with a probe's name and its own options; needs no model."""
    cfg = config.probe
    if not cfg.on:
        return [
            f"{KEY}.{name}={value}: there is no such key with {KEY}=none"
            f"{did_you_mean(name, ProbeConfig.model_fields)}"
            for name, value in (cfg.model_extra or {}).items()
        ]
    try:
        own = _find(cfg).check(_options(cfg), config)
    except ConfigError as error:
        return error.problems
    return [f"{KEY}.{problem}" for problem in own]


def completed(cfg: ProbeConfig) -> ProbeConfig:
    """Return the section with every option of its probe.

    Raises:
        ConfigError: there is no such probe, or its options do not fit.
    """
    return plugins.completed(cfg, _options(cfg)) if cfg.on else cfg


def make(run: WatchedRun) -> Probe:
    """Return the probe that a run's configuration chooses."""
    return _find(run.config.probe)(_options(run.config.probe), run)


def _find(cfg: ProbeConfig) -> type[Probe]:
    probe: type[Probe] = PROBES.find(cfg.name, f"{KEY}.name={cfg.name}")
    return probe


def _options(cfg: ProbeConfig) -> Section:
    return plugins.section_options(cfg, _find(cfg).Options, KEY, f"probe {cfg.name}")
