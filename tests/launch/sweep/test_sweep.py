"""Sweeps: their table, what their jobs leave, what a search is given; and the recipes."""

from __future__ import annotations

import copy
import itertools
import os
import re
import socket
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from launch.compose import checked, compose_run, force_overrides
from launch.config_groups import CONFIGS, groups
from launch.sweep.hydra_hooks import RecordingLauncher, job_count, quoted
from launch.sweep.job import process
from launch.sweep.job_records import Records, sweep_name
from launch.sweep.objective import FLOOR, check_goal, goal_value, missed_by
from launch.sweep.summary import conclude
from launch.sweep.summary_table import summary
from launch.sweep.sweep_run import SweepRun, varying
from tests.launch.commands import done
from unlearn.config import GoalConfig, RunConfig
from unlearn.errors import ConfigError, UserError
from unlearn.files import read_json, write_json
from unlearn.plugins import FOLDERS
from unlearn.terms import bind

TOFU = (
    "tofu/forget_quality", "tofu/model_utility", "tofu/forget/probability", "tofu/forget/rougeL_recall",
    "tofu/forget/truth_ratio", "tofu/forget/extraction_strength", "tofu/retain/probability",
    "tofu/retain/extraction_strength",
)  # fmt: skip
OTHER = ("train/loss", "run/seconds", "judged/utility", "tofu/retain/rougeL_recall", "tofu/privleak",
         "relearning/60/tofu/forget/probability", "calibrated/muse/forget/verbmem")  # fmt: skip
LUME = ("lume/final", "lume/task_aggregate", "lume/mia_score", "lume/forget/regurgitation",
        "lume/forget/knowledge", "lume/retain/regurgitation", "lume/retain/knowledge")  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "heads"),
    [
        (
            TOFU,
            ["forget_quality ↑", "model_utility ↑", "forget/probability ↓", "forget/rougeL_recall ↓",
             "forget/truth_ratio ↑", "forget/extraction_strength ↓", "retain/probability ↑",
             "retain/extraction_strength ↑"],
        ),
        (
            ("muse/forget/verbmem", "muse/forget/knowmem", "muse/retain/knowmem", "muse/privleak",
             "muse/forget/verbmem/missing"),
            ["privleak → 0", "forget/verbmem ↓", "forget/knowmem ↓", "retain/knowmem ↑"],
        ),
        (
            ("wmdp/bio/accuracy", "wmdp/bio/accuracy_low", "mmlu/accuracy"),
            ["wmdp/bio/accuracy ↓", "mmlu/accuracy ↑"],
        ),
        (("mine/forget/probability", "mine/forget/odd"), ["forget/odd", "forget/probability"]),
        # Next to all of TOFU there is room for one.
        (
            (*TOFU[1:3], "general/accuracy"),
            ["tofu/model_utility ↑", "tofu/forget/probability ↓", "general/accuracy ↑"],
        ),
        ((), ["utility ↑"]),  # a judgement where there is nothing else
    ],
)  # fmt: skip
def test_columns(tmp_path, keys, heads):
    write_json(tmp_path / "results.json", dict.fromkeys((*keys, *OTHER), 0.5))
    found = summary([SweepRun(("method=npo",), tmp_path), SweepRun(("method=rmu",), None, "too few layers")])
    assert found.heads == ["", *heads]
    assert found.rows == [["npo", *["0.5000"] * len(heads)]]
    assert found.failed == [("rmu", "too few layers")]


def test_no_table_is_wider_than_nine_columns(tmp_path):
    write_json(tmp_path / "results.json", dict.fromkeys((*TOFU, *LUME, *OTHER), 0.5))
    heads = summary([SweepRun((), tmp_path)]).heads
    assert [head.split(" ")[0] for head in heads[1:]] == [*TOFU, "lume/final"]


def made(folder: Path, *overrides: str, **others: Any) -> SweepRun:
    write_json(folder / "results.json", {"tofu/model_utility": 0.5})
    return SweepRun(overrides, folder, **others)


def test_runs_are_distinguished_by_what_they_do_not_share(tmp_path):
    pairs = [("npo", 0), ("npo", 1), ("wga", 0)]
    runs = [made(tmp_path / f"{m}{s}", f"method={m}", "eval=tofu", f"++seed={s}") for m, s in pairs]
    assert [row[0] for row in summary(runs).rows] == ["npo seed=0", "npo seed=1", "wga seed=0"]
    assert varying([run.overrides for run in runs])[2] == "method=wga seed=0"
    assert varying([runs[0].overrides], command=["eval=tofu"]) == ["method=npo seed=0"]


def test_a_sampler_s_numbers_are_shown_short(tmp_path):
    (label, *_) = summary(
        [made(tmp_path, "++method.lr=7.76531791387652e-06"), made(tmp_path, "++seed=1")]
    ).rows[0]
    assert label == "lr=7.765e-06"


def test_each_forget_set_has_its_own_baselines(tmp_path):
    baselines = {}
    for name in ("target", "retain1", "retain5"):
        baselines[name] = made(tmp_path / name).directory
    runs = [
        made(tmp_path / f"{split}{m}", f"method={m}", f"++dataset.forget=forget0{split}",
             baselines=(("target", baselines["target"]), ("retain model", baselines[f"retain{split}"])))
        for split in "15" for m in ("npo", "wga")
    ]  # fmt: skip
    names = [row[0] for row in summary(runs).rows]
    assert names[:3] == ["target", "retain model, forget=forget01", "retain model, forget=forget05"]
    assert len(names) == 3 + 4


def test_a_folder_that_is_gone_is_an_empty_row(tmp_path):
    there, gone = made(tmp_path / "a", "++seed=0"), SweepRun(("++seed=1",), tmp_path / "gone")
    assert summary([there, gone]).rows == [["seed=0", "0.5000"], ["seed=1", "–"]]


def test_jobs_of_one_folder_have_the_results_of_their_own_evaluation(tmp_path):
    write_json(tmp_path / "results.json", {"tofu/model_utility": 0.5})  # that of the last job
    records = Records(tmp_path / "sweep")
    records.announce({0: ["eval.limit=10"], 1: ["eval.limit=50"]}, 2, ["-m"], anew=True)
    for number, limit, value in ((0, 10, 0.25), (1, 50, 0.5)):
        results = {"tofu/model_utility": value}
        records.end(number, SweepRun((f"eval.limit={limit}",), tmp_path, results=results))
    assert summary(records.runs()).rows == [["limit=10", "0.2500"], ["limit=50", "0.5000"]]


class TestRecords:
    JOBS = (("method=npo", "++seed=0"), ("method=npo", "++seed=1"), ("method=npo", "++seed=2"))

    def records(self, tmp_path: Path) -> Records:
        found = Records(tmp_path / "runs" / "sweeps" / "sweep-x")
        found.announce(dict(enumerate(self.JOBS)), 0, ["method=npo", "++seed=0,1,2"], anew=True)
        return found

    def test_what_ended_what_was_killed_and_what_never_began(self, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        records = self.records(tmp_path)
        records.begin(0, self.JOBS[0])
        assert records.running() == [os.getpid()]
        records.end(0, made(tmp_path / "a run", *self.JOBS[0]))
        records.begin(1, self.JOBS[1])
        assert records.title(1) == "[2/3] seed=1"
        assert conclude(records, "the launcher broke") == 1
        shown = capsys.readouterr()
        assert "failed: seed=1: died without an exit code (killed?)" in shown.out
        assert "not begun: method=npo seed=2" in shown.out
        assert shown.err == "the launcher broke; the same command continues the sweep\n"
        assert "failed: died without an exit code" in (tmp_path / "runs" / "sweep-x.md").read_text()

    def test_what_another_command_still_makes_has_not_failed(self, tmp_path):
        records = self.records(tmp_path)
        records.begin(0, self.JOBS[0])
        (file,) = records.folder.glob("0.json")
        write_json(file, {**read_json(file), "process": os.getppid()})
        (run,) = records.runs()
        assert (run.code, run.reason) == (75, f"still runs, in process {os.getppid()} of another command")

    def test_values_are_of_those_that_came_to_an_end(self, tmp_path):
        records = self.records(tmp_path)
        records.end(0, SweepRun(self.JOBS[0], None, code=0, value=0.5))
        records.end(1, SweepRun(self.JOBS[1], None, code=1))
        records.end(2, SweepRun(self.JOBS[2], None, code=75))
        assert records.values(range(3)) == {0: 0.5, 1: None}
        records.begin(1, self.JOBS[1])
        assert records.values(range(3)) == {0: 0.5}

    def test_started_again_what_is_done_stands_and_the_rest_is_forgotten(self, tmp_path):
        records = self.records(tmp_path)
        records.end(0, made(tmp_path / "a run", *self.JOBS[0]))
        records.end(1, SweepRun(self.JOBS[1], None, "out of memory", code=1))
        records.announce(dict(enumerate(self.JOBS[:2])), 0, [], anew=True)
        assert [run.code for run in records.runs()] == [0]
        assert records.not_begun() == [self.JOBS[1]]
        # Another sweep of the same name, whose first job is another one.
        records.announce({0: self.JOBS[2]}, 0, [], anew=True)
        assert records.runs() == []
        assert sorted(file.name for file in records.folder.iterdir()) == ["jobs.json"]

    def test_batches_of_a_search_add_up(self, tmp_path):
        records = self.records(tmp_path)
        records.announce({0: self.JOBS[0]}, 20, [], anew=True)
        records.announce({1: self.JOBS[1]}, 20, [], anew=False)
        assert list(records.listed()) == [0, 1]
        assert records.title(1) == "[2/20] seed=1"

    def test_commands_that_share_a_search_add_theirs_in_any_order(self, tmp_path):
        records = Records(tmp_path / "runs" / "sweeps" / "sweep-x")
        for number in (1, 0, 2):
            records.announce({number: self.JOBS[number]}, 3, [], anew=False)
            records.end(number, SweepRun(self.JOBS[number], None))
        assert list(records.listed().items()) == [*enumerate(self.JOBS)]
        assert [run.overrides for run in records.runs()] == [*self.JOBS]

    def test_the_worst_code_is_that_of_the_sweep(self, tmp_path, capsys):
        records = self.records(tmp_path)
        for number, code in enumerate((0, 75, 2)):
            reason = "" if code == 0 else "something"
            records.end(
                number, SweepRun(self.JOBS[number], tmp_path if code == 0 else None, reason, code=code)
            )
        write_json(tmp_path / "results.json", {})
        assert conclude(records) == 75

    def test_one_process_of_a_job_tells_of_it(self, tmp_path, monkeypatch):
        records = self.records(tmp_path)
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
        monkeypatch.setenv("SLURM_PROCID", "1")
        records.begin(0, self.JOBS[0])
        assert not records.begun(0)
        monkeypatch.setenv("SLURM_PROCID", "0")
        records.begin(0, self.JOBS[0])
        assert records.begun(0)


@pytest.mark.parametrize(
    "arguments",
    [
        ["method.lr=1e-5,1e-4"],
        [
            "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "method.lr=interval(1e-5,1e-3)",
            "hydra.sweeper.storage=sqlite:///study.db",
        ],
    ],
)  # fmt: skip
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_dry_run_leaves_the_records_of_the_sweep(arguments, tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARN_SWEEP", "mine")
    records = Records(tmp_path / "runs" / "sweeps" / "mine")
    records.announce({0: ["++method.lr=2e-5"]}, 0, [], anew=True)
    records.end(0, SweepRun(("++method.lr=2e-5",), tmp_path / "a run"))
    (tmp_path / "runs" / "mine.md").write_text("the table")
    (records.folder / "stop").touch()
    before = {file: file.is_file() and file.read_text() for file in tmp_path.rglob("*")}
    small = ("dataset.options.authors=10", "model.nano.layers=1", "eval=none", "dry_run=true")
    shown = done(tmp_path, "-m", *small, *arguments)
    assert "[2/2] method.lr=" in shown.out
    assert "sweep: " not in shown.out
    assert {file: file.is_file() and file.read_text() for file in tmp_path.rglob("*")} == before


def test_a_stop_that_a_killed_command_left_stops_no_later_one(tmp_path, monkeypatch):
    """In a container that starts again, the next command has the same host name and process id."""
    monkeypatch.setenv("UNLEARN_SWEEP", "mine")
    records = Records(tmp_path / "runs" / "sweeps" / "mine", "-".join(map(str, process())))
    records.folder.mkdir(parents=True)
    records.stop()
    small = (
        "method=none", "eval=none", "dataset.options.authors=10", "model.nano.layers=1",
        "model.nano.hidden_size=16", "model.nano.heads=2", "model.finetune.steps=1", "tracker=disabled",
        "hardware.threads=1",
    )  # fmt: skip
    assert "not begun" not in done(tmp_path, "-m", *small, "seed=0,1").out
    assert (records.folder / "multirun.yaml").is_file()
    assert not (tmp_path / "runs" / "multirun.yaml").exists()
    assert [run.code for run in records.runs()] == [0, 0]
    assert not records.stopping()


class Launching:
    """A launcher, during whose jobs another sweep in the same folder begins."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def launch(self, job_overrides: Any, initial_job_idx: int) -> list[JobReturn]:
        (self.root / "multirun.yaml").write_text("the other's")
        return [JobReturn(overrides=job, status=JobStatus.COMPLETED) for job in job_overrides]


def test_sweeps_in_one_folder_keep_their_own_configurations(tmp_path):
    records = Records(tmp_path / "sweeps" / "mine")
    (tmp_path / "multirun.yaml").write_text("mine")  # as Hydra does before the first job
    config = OmegaConf.create({"hydra": {"overrides": {"task": []}}})
    launcher = RecordingLauncher(cast(Launcher, Launching(tmp_path)), records, config)
    launcher.launch([["seed=0"]], 0)
    launcher.launch([["seed=1"]], 1)
    conclude(records)
    assert (records.folder / "multirun.yaml").read_text() == "mine"
    assert (tmp_path / "multirun.yaml").read_text() == "the other's"


def test_a_sweep_is_called_the_same_wherever_its_jobs_run():
    given = ["++seed=0,1", "experiment=satimp-study"]
    name = sweep_name(given)
    assert re.fullmatch("sweep-satimp-study-[0-9a-f]{8}", name)
    assert name == sweep_name(["hydra/launcher=joblib", "hydra.launcher.n_jobs=4", *reversed(given)])
    assert name == sweep_name([*given, "hardware=gpu", "++tracker.mode=offline", "hydra.sweeper.n_jobs=2"])
    assert name == sweep_name([*given, "hydra.sweeper.n_trials=40"])  # the study is the same, too
    assert name != sweep_name(["++seed=0,1,2", "experiment=satimp-study"])
    assert name == sweep_name(given, "config")
    assert len({name, sweep_name(given, "study-a"), sweep_name(given, "study-b")}) == 3


def job_count_of(*arguments: str) -> int:
    overrides = force_overrides(arguments)
    return job_count(compose_run(overrides, hydra=True), overrides)


@pytest.mark.parametrize(
    ("arguments", "jobs"),
    [
        (["seed=0,1", "method=npo,wga", "dataset.forget=range(1,4)"], 12),
        (["experiment=geffect-study"], 7 * 4 * 3),
        (["experiment=satimp-study"], 2 * 18 * 2 * 3),
        (["experiment=geffect-study", "seed=0", "method.retain=none,kl"], 7 * 2),
        (["experiment=optuna-npo", "hydra.sweeper.n_jobs=3"], 3),  # trials are launched by threes
        (["method=npo"], 1),
    ],
)
def test_how_many_jobs_are_launched_at_once(arguments, jobs):
    assert job_count_of(*arguments) == jobs


def test_a_command_narrows_a_recipe_without_signs(tmp_path, monkeypatch):
    recipe = tmp_path / "experiment" / "mine.yaml"
    recipe.parent.mkdir()
    params = {"method": "npo,simnpo", "method.lr": "1e-5,3e-5", "+seed": "0,1"}
    text = OmegaConf.to_yaml({"hydra": {"sweeper": {"params": params}}})
    recipe.write_text(f"# @package _global_\n{text}")
    monkeypatch.setenv(FOLDERS, str(tmp_path))
    assert job_count_of("experiment=mine") == 8
    assert job_count_of("experiment=mine", "method.lr=1e-4", "seed=3") == 2


@pytest.mark.parametrize(
    ("drawn", "handed_on"),
    [
        ("++x=a b", "++x=a b"),
        ("++x=1e-05", "++x=1e-05"),
        ("++x={objective:npo,beta:0.1}", "++x={objective:npo,beta:0.1}"),
        ("++x=a,b", "++x='a,b'"),  # else two values
        ("++x=it's; $(ls)", "++x='it\\'s; $(ls)'"),
    ],
)
def test_what_a_sampler_drew_is_read_as_one_value_again(drawn, handed_on):
    assert quoted(drawn) == handed_on


# -- what a search is given --------------------------------------------------------------------------


FOUND = {"q": -2.0, "u": 0.57, "v": 0.2, "gone": None}
BASELINES = {"target": {"u": 0.6, "v": 0.9}, "retain": {"u": 0.5, "v": 0.1}}


def goal(subject_to: dict[str, float | str], **keys: Any) -> GoalConfig:
    return GoalConfig(subject_to=subject_to, **{"maximize": "q", **keys})


@pytest.mark.parametrize(
    ("subject_to", "missed"),
    [
        ({}, 0),
        ({"u": 0.9}, 0),  # 0.57 ≥ 0.9 · 0.6 = 0.54
        ({"u": 1.0}, 0.05),  # 0.6 asked: 0.03 / 0.6
        ({"u": ">= 0.57"}, 0),  # exactly met
        ({"u": ">=0.76"}, 0.25),  # 0.19 / 0.76
        ({"v": "<= 0.1"}, 1.0),  # 0.1 / 0.1
        ({"v": "<= 1.6 retain"}, 0.25),  # 0.16 asked: 0.04 / 0.16
        ({"v": "<= 0.25target"}, 0),  # 0.225 asked
        ({"u": 1.0, "v": "<= 0.1"}, 1.05),
        ({"v": "<= 0"}, 0.2),  # of nothing, in plain units
        ({"q": ">= -1"}, 1.0),  # 1 / |-1|
        ({"q": "<= -1e0"}, 0),
    ],
)
def test_what_must_hold_comes_before_what_is_sought(subject_to, missed):
    value, feasible = goal_value(goal(subject_to), FOUND, BASELINES)
    assert feasible == (missed == 0)
    if feasible:
        assert value == -2.0
    else:
        assert value < FLOOR
        assert missed_by(value) == pytest.approx(missed)


def test_the_further_from_feasible_the_lower():
    low = [goal_value(goal({"u": share}), FOUND, BASELINES)[0] for share in (0.9, 1.0, 1.1, 2.0)]
    assert low == sorted(low, reverse=True)
    assert len(set(low)) == 4
    # Not even the worst of feasible values is lower.
    assert goal_value(goal({}), {"q": -1e300}, {})[0] == FLOOR > low[1]


def test_a_metric_to_be_small():
    assert goal_value(goal({}, minimize="v"), FOUND, BASELINES) == (-0.2, True)


@pytest.mark.parametrize(
    ("sought", "words"),
    [
        (goal({}, maximize="tofu/q"), ["the run's results have no tofu/q"]),
        (goal({}, maximize="gone"), ["gone of the run could not be measured"]),
        (goal({"q": 0.9}), ["the target's results have no q"]),
    ],
)
def test_what_was_not_measured_is_named(sought, words):
    with pytest.raises(UserError) as caught:
        goal_value(sought, FOUND, BASELINES)
    assert all(word in str(caught.value) for word in words)


def composed(*arguments: str) -> RunConfig:
    overrides = force_overrides(arguments)
    found = compose_run(overrides, hydra=True)
    return checked(found, overrides, found.hydra.runtime.choices)


def test_a_goal_on_the_command_line():
    config = composed(
        "goal.maximize=tofu/privleak", "goal.subject_to={tofu/model_utility: '>= 0.5', a/b: 0.9}"
    )
    assert config.goal.subject_to == {"tofu/model_utility": ">= 0.5", "a/b": 0.9}
    with pytest.raises(ConfigError, match="not a bound"):
        composed("goal.subject_to={tofu/model_utility: 'about 0.5'}")
    relative = composed("goal.subject_to={tofu/model_utility: 0.9}", "eval.compare=false")
    with pytest.raises(ConfigError, match=r"eval\.compare=false"):
        check_goal(relative)
    check_goal(composed("goal.subject_to={tofu/model_utility: '>= 0.5'}", "eval.compare=false"))


# -- recipes -----------------------------------------------------------------------------------------


def whole(recipe: str) -> DictConfig:
    """The keys of a recipe's file over those of the recipes that it builds on."""
    file = OmegaConf.load(CONFIGS / "experiment" / f"{recipe}.yaml")
    assert isinstance(file, DictConfig)
    below = [whole(name) for name in file.get("defaults") or [] if isinstance(name, str)]
    merged = OmegaConf.merge(*below, file)
    assert isinstance(merged, DictConfig)
    return merged


def elements(recipe: str, dropped: Collection[str] = ()) -> Iterator[RunConfig]:
    """Every element of a recipe's sweep without some keys; of an interval that is searched, where it begins.

    As Hydra would compose each, without its tenth of a second for it.
    """
    base = compose_run([f"experiment={recipe}"], hydra=True)
    file = whole(recipe)
    params = base.hydra.sweeper.get("params") or {}
    parsed = OverridesParser.create().parse_overrides(
        [f"{key}={value}" for key, value in params.items() if key not in dropped]
    )
    values = [
        [v.start]
        if isinstance(v := one.value(), IntervalSweep)
        else [*one.sweep_iterator()]
        if one.is_sweep_override()
        else [v]
        for one in parsed
    ]
    for element in itertools.product(*values):
        config = copy.deepcopy(base)
        for one, value in zip(parsed, element, strict=True):
            if one.key_or_group == "method":
                option = OmegaConf.load(CONFIGS / "method" / f"{value}.yaml")
                config.method = OmegaConf.merge(option, OmegaConf.select(file, "method") or {})
            else:
                OmegaConf.update(config, one.key_or_group, value, merge=True, force_add=True)
        yield checked(config)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", groups()["experiment"])
def test_every_element_of_a_recipe_composes_without_the_hub(recipe, monkeypatch):
    def refuse(*_: Any) -> None:
        raise AssertionError("a recipe looked up something outside while it was composed")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    found = list(elements(recipe))
    assert all(bind(config.method) or config.method.intervention for config in found)
    assert len({config.model_dump_json() for config in found}) == len(found)
    assert len(found) == 1 or {config.tracker.project for config in found} == {recipe}


def test_satimps_study_weighs_forgetting_and_retaining_alike():
    """At the target, without weights, both bases pull as hard as the retain term."""
    every = list(elements("satimp-study", dropped=("++seed", "++method.retain")))
    logp = torch.tensor([-0.1, -2.0, -0.7, -0.4, -1.2], dtype=torch.float64)
    named = {"ref_logp": logp, "lengths": torch.tensor([2, 3])}
    for config in every:
        terms = {term.name: term for term in bind(config.method)}
        assert config.method.rule.name == "weighted_sum"
        for name, term in terms.items():
            own = logp.clone().requires_grad_()
            loss = term.weight * replace(term, weighting=None).values({**named, "logp": own}).mean()
            (slope,) = torch.autograd.grad(loss, own)
            assert float(slope.sum()) == pytest.approx(1.0 if name == "forget" else -1.0, abs=1e-12)
        weighting = terms["forget"].weighting
        assert weighting is not None
        whole = weighting.granularity in ("instance", "batch")
        assert weighting.options.get("length_norm", False) is whole


def test_the_elements_are_those_that_hydra_composes():
    job = ["method=npo-geffect", "++method.retain=kl", "++seed=2"]
    assert composed("experiment=geffect-study", *job) in elements("geffect-study")
