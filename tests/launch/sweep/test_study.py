"""The study of a search: its space, its trials, and processes that share it."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import CmaEsSampler, GridSampler, RandomSampler, TPESampler

from launch.sweep.search_space import search_space
from launch.sweep.study import SharedStudy
from tests.launch.sweep.processes import FORKS, LIMIT, wait_until
from unlearn.errors import UserError

# What the command ignores: heartbeats are experimental in Optuna.
pytestmark = pytest.mark.filterwarnings(
    "ignore::optuna.exceptions.ExperimentalWarning", "ignore:Heartbeat of storage:UserWarning"
)
SPACE = search_space(["++lr=tag(log,interval(1e-5,1e-3))", "++batch=choice(2,4)"])
RANDOM = partial(RandomSampler, seed=0)


@pytest.mark.parametrize(
    ("text", "distribution"),
    [
        ("interval(0,1)", FloatDistribution(0.0, 1.0)),
        ("interval(0.5,4)", FloatDistribution(0.5, 4.0)),
        ("tag(log,interval(1e-6,1e-4))", FloatDistribution(1e-6, 1e-4, log=True)),
        ("int(interval(1.5,8.2))", IntDistribution(1, 8)),
        ("tag(log,int(interval(1,64)))", IntDistribution(1, 64, log=True)),
        ("range(1,10,3)", IntDistribution(1, 7, step=3)),  # 10 is left out, as in a sweep
        ("range(10,1,-3)", IntDistribution(4, 10, step=3)),
        ("range(0.0,1.0,0.25)", FloatDistribution(0.0, 0.75, step=0.25)),
        ("choice(npo,1,0.5,true)", CategoricalDistribution(["npo", 1, 0.5, True])),
        ("a,null", CategoricalDistribution(["a", "null"])),
        ("choice({objective:npo},'a, b')", CategoricalDistribution(["{objective:npo}", "a, b"])),
    ],
)
def test_ranges_are_searched_as_they_are_swept(text, distribution):
    assert search_space([f"++x={text}"]).distributions == {"++x": distribution}


def test_of_one_key_the_last_counts():
    space = search_space(["++lr=interval(0,1)", "++beta=interval(0,1)", "method=npo", "lr=0.5", "++beta=1,2"])
    assert space.distributions == {"++beta": CategoricalDistribution([1, 2])}
    assert space.overrides({"++beta": 2}) == ["++beta=2", "method=npo", "lr=0.5"]


@pytest.mark.parametrize("text", ["interval(2,1)", "tag(log,interval(0,1))", "range(3,3)", "glob(*)"])
def test_what_cannot_be_searched_is_named(text):
    with pytest.raises(UserError) as caught:
        search_space([f"++x={text}"])
    assert f"++x={text}: " in str(caught.value)


def study(n_trials: int, where: str | None = None, sampler: Any = RANDOM, **others: Any) -> SharedStudy:
    return SharedStudy(
        where, "mine", sampler, others.get("space", SPACE), n_trials, others.get("heartbeat_s", 60)
    )


def drawn(study: SharedStudy, together: int = 1) -> list[dict[str, Any]]:
    """The parameters of all trials, whose value is their rate; each second one fails."""
    params: dict[int, dict[str, Any]] = {}
    while trials := study.claim(together):
        params |= {job: trial.params for job, trial in trials.items()}
        for job, trial in trials.items():
            study.tell(trial, None if job % 2 else trial.params["++lr"])
    assert [*params] == [*range(len(params))]
    return [*params.values()]


@pytest.mark.parametrize("sampler", [RandomSampler, TPESampler, CmaEsSampler])
def test_the_same_search_makes_the_same_trials_and_a_longer_one_goes_on(sampler):
    space = search_space(["++lr=interval(0.0,1.0)", "++beta=interval(0.0,2.0)"])
    searches = [
        drawn(study(n, sampler=partial(sampler, seed=seed), space=space))
        for n, seed in [(14, 0), (14, 0), (16, 0), (14, 1)]
    ]
    assert len({str(params) for params in searches[0]}) == len(searches[0]) == 14
    assert searches[0] == searches[1] == searches[2][:14]
    assert searches[0] != searches[3]


def test_a_grid_has_every_point():
    space = search_space(["++lr=choice(1.0,2.0)", "++beta=range(0,3)"])
    points = drawn(study(20, sampler=partial(GridSampler, seed=0), space=space), together=4)
    assert points == [{"++lr": lr, "++beta": beta} for lr in (1.0, 2.0) for beta in (0, 1, 2)]
    with pytest.raises(UserError, match="lr: a grid needs"):
        study(20, sampler=partial(GridSampler, seed=0))


def test_a_trial_that_is_given_back_is_made_again_and_a_failed_one_is_not(tmp_path):
    where = f"sqlite:///{tmp_path}/study.db"
    drawing = partial(RandomSampler, seed=None)  # draws no parameters twice
    first = study(3, where, drawing).claim(3)
    one = study(3, where, drawing)
    one.tell(first[0], None)
    one.free(first[1])
    one.tell(first[2], 0.5)
    again = study(4, where, drawing).claim(4)  # of a longer search
    assert sorted(again) == [1, 3]
    assert again[1].params == first[1].params
    best = one.best()
    assert best is not None
    assert best.params == first[2].params


@pytest.mark.parametrize("where", ["postgresq://x/y", "sqlite:////dev/null/study.db"])
def test_a_storage_that_cannot_be_opened_is_named(where):
    with pytest.raises(UserError, match=rf"hydra.sweeper.storage={where}: "):
        study(1, where)


@pytest.mark.parametrize("where", ["sqlite://", "sqlite:///:memory:"])
def test_memory_is_no_database(where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="null keeps the study in memory"):
        study(1, where)
    assert not [*tmp_path.iterdir()]


def test_a_password_is_not_shown():
    with pytest.raises(UserError) as caught:
        study(1, "nosuchdriver://me:secret@host/study")
    assert "secret" not in str(caught.value)


def test_a_job_that_two_commands_offer_at_once_is_claimed_once(tmp_path):
    where = f"sqlite:///{tmp_path}/study.db"
    one, other = study(1, where), study(1, where)
    for command in (one, other):
        command._study.enqueue_trial({}, user_attrs={"job": 0})
    assert [*one.claim(1)] == [0]
    assert other.claim(1) == {}


# -- several processes -------------------------------------------------------------------------------


def take_part(where: str, n_trials: int) -> None:
    mine = study(n_trials, where)
    while trials := mine.claim(2):
        time.sleep(0.02)
        for job, trial in trials.items():
            mine.tell(trial, float(job))


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["sqlite:///{}/study.db", "{}/journal.log"])
def test_processes_share_exactly_the_trials_of_a_study(storage, tmp_path):
    """They begin at once, so that they also create it together."""
    where, n_trials = storage.format(tmp_path), 8
    commands = [FORKS.Process(target=take_part, args=(where, n_trials)) for _ in range(3)]
    for command in commands:
        command.start()
    for command in commands:
        command.join(LIMIT)
    assert [command.exitcode for command in commands] == [0, 0, 0]
    made = study(n_trials, where)
    assert made.claim(1) == {}
    trials = [trial for trial in made._study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    assert sorted(trial.user_attrs["job"] for trial in trials) == [*range(n_trials)]
    assert len({trial.params["++lr"] for trial in trials}) == n_trials


@pytest.mark.slow
def test_a_trial_whose_command_died_as_it_claimed_it_is_freed(tmp_path):
    where = f"sqlite:///{tmp_path}/study.db"
    died, mine = study(1, where, heartbeat_s=1), study(1, where, heartbeat_s=1)
    died._offer(1)
    died._study.ask(dict(died._space.distributions))  # and no word that it runs
    assert mine.elsewhere() == 1
    freed: dict[int, Any] = {}
    wait_until(lambda: freed.update(mine.claim(1)) or freed)
    assert [*freed] == [0]


def begin_one(where: str, folder: Path) -> None:
    mine = study(2, where, heartbeat_s=1)
    trial = mine.claim(1)[0]
    with mine.heartbeats([trial]):
        (folder / "begun").write_text(str(trial.params["++lr"]))
        time.sleep(LIMIT)


@pytest.mark.slow
def test_a_trial_is_freed_when_its_process_is_killed_and_not_before(tmp_path):
    where = f"sqlite:///{tmp_path}/study.db"
    command = FORKS.Process(target=begin_one, args=(where, tmp_path))
    command.start()
    wait_until((tmp_path / "begun").exists)
    mine = study(2, where, heartbeat_s=1)
    own = mine.claim(1)
    with mine.heartbeats([own[1]]):
        time.sleep(4)  # longer than a heartbeat may be missing
        assert mine.claim(1) == {}
        assert mine.elsewhere() == 2
        mine.tell(own[1], 0.5)
    command.kill()
    command.join(LIMIT)
    freed: dict[int, Any] = {}
    wait_until(lambda: freed.update(mine.claim(1)) or freed)
    assert [*freed] == [0]
    assert str(freed[0].params["++lr"]) == (tmp_path / "begun").read_text()


def test_of_trials_that_are_stopped_together_those_that_ended_count():
    mine = study(3)
    trials = mine.claim(3)
    mine.end(trials, {0: 0.5, 1: None})
    best = mine.best()
    assert best is not None
    assert best.value == 0.5
    assert list(mine.claim(3)) == [2]  # the failed one is not tried again
