"""What goes wrong around a run: launchers, flags, folders, surroundings. Each ends with a message."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from eval.benchmark import find
from eval.metric_catalog import can_be, metrics_of
from launch.run import foreign_launchers
from launch.run.log_warnings import last_error, warning_lines
from launch.slurm import array_limit
from launch.tracking.wandb_session import mode_of_variables
from tests.launch.commands import done, unlearn
from tests.paths import ROOT
from tests.refusals import Refused, check_refusal
from unlearn.errors import UserError
from unlearn.files import folder_name, replacing
from unlearn.guard import guarded

TINY = (
    "hardware.threads=1", "tracker=disabled", "eval=none", "method=grad_ascent", "method.steps=2",
    "method.batch=4", "dataset.options.authors=10", "model.finetune.epochs=1", "model.nano.hidden_size=32",
    "model.nano.layers=1", "model.nano.heads=2",
)  # fmt: skip
QUEUE = ("-m", "dry_run=true", "hydra/launcher=slurm", "hardware=slurm-cpu")
SEARCH = (
    "-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "method.lr=interval(1e-5,1e-3)",
)  # fmt: skip

REFUSED = {
    "sweep without -m": Refused(("method=npo,wga",), ("method=npo,wga", "-m")),
    "sweep in a dry run": Refused(("dry_run=true", "seed=range(0,3)"), ("seed=range(0,3)", "-m")),
    "sweep to be shown": Refused(("--cfg", "job", "method.lr=interval(1e-6,1e-4)"), ("method.lr=", "-m")),
    "unknown flag": Refused(("--multi",), ("--multi:", "did you mean --multirun")),
    "no key": Refused(("method", "npo"), ("method: write a setting as key=value",)),
    "launcher without a sweep": Refused(("hydra/launcher=joblib",), ("hydra/launcher=joblib", "-m")),
    "no such launcher": Refused(("-m", "hydra/launcher=joblb"), ("joblb", "did you mean joblib")),
    "no such sampler": Refused(
        ("-m", "hydra/sweeper=optuna", "hydra/sweeper/sampler=tp"),
        ("hydra/sweeper/sampler=tp: there is no such option (did you mean tpe?)",),
    ),
    "counts of a search": Refused(
        (*SEARCH, "hydra.sweeper.n_trials=many", "hydra.sweeper.n_jobs=1.5", "hydra.sweeper.heartbeat_s=0"),
        (
            "hydra.sweeper.n_trials='many': a whole number",
            "hydra.sweeper.n_jobs=1.5: a whole number",
            "hydra.sweeper.heartbeat_s=0: a whole number, at least 1",
        ),
    ),
    "key of a launcher": Refused(
        ("-m", "hydra/launcher=joblib", "+hydra.launcher.jobs=3"),
        ("hydra.launcher.jobs", "did you mean n_jobs"),
    ),
    "several of a group": Refused(
        ("method=[task_vector,npo]",), ("a run has one method", "unlearn -m method=task_vector,npo")
    ),
    "folder of something else": Refused(
        ("hydra.run.dir=.",),
        ("hydra.run.dir=", "the folder holds no run, but afile", "choose another folder"),
    ),
    "root is a file": Refused(("root=afile",), ("root=afile", "is a file")),
    "root below a file": Refused(("root=afile/runs",), ("root=afile/runs", "afile is a file")),
    "run folder is a file": Refused((*TINY, "hydra.run.dir=afile"), ("afile: is a file",)),
    "sweep folder is a file": Refused(("-m", *TINY, "hydra.sweep.dir=afile"), ("afile: is a file",)),
    "unknown home": Refused(('root="~no-such-user/runs"',), ("root=", "no such home")),
    "no root": Refused(("root=''",), ("root=''", "name a folder")),
    "warned after the time limit": Refused(
        (*QUEUE, "hardware.slurm.warning_s=9999", "hardware.slurm.minutes=10"),
        ("hardware.slurm.warning_s=9999", "hardware.slurm.minutes=10, 600 s"),
    ),
    "option of sbatch with a key of its own": Refused(
        (*QUEUE, "hardware.slurm.additional={time: 5}"),
        ("hardware.slurm.additional.time=5", "hardware.slurm.minutes"),
    ),
    "option of sbatch with dashes": Refused(
        (*QUEUE, "hardware.slurm.additional={--mail-type: END}"), ("without its dashes",)
    ),
    "metric to calibrate by": Refused(
        ("eval=[tofu,calibrated]", "eval.variants.calibrated.metric=tofu/retain/probabilty"),
        ("metric=tofu/retain/probabilty", "did you mean tofu/retain/probability"),
    ),
    "nothing to calibrate by": Refused(
        ("eval=[sampling,calibrated]",), ("metric is not set", "retain/extraction_strength")
    ),
    "text to relearn": Refused(
        ("eval=[tofu,relearning]", "eval.variants.relearning.text=latin1.txt"),
        ("relearning.text=latin1.txt", "not text in UTF-8"),
    ),
    "seed to relearn by": Refused(
        ("eval=[tofu,relearning]", "eval.variants.relearning.seed=-1"), ("relearning.seed=-1",)
    ),
    "option of a benchmark": Refused(
        ("eval.benchmarks.tofu.generation=maybe",), ("generation='maybe'", "boolean")
    ),
    "length of an answer": Refused(
        ("eval=sampling", "eval.benchmarks.sampling.max_new_tokens=0"), ("max_new_tokens=0", "at least 1")
    ),
    "layers the wrong way round": Refused(
        ("probe=geffect", "probe.boundaries=[0.7,0.3]"), ("probe.boundaries=[0.7, 0.3]", "increasing")
    ),
    "layers behind the last": Refused(
        ("probe=geffect", "probe.boundaries=[2,9]"), ("probe.boundaries=[2.0, 9.0]", "the model's 4")
    ),
    "goal of a search": Refused(
        (*SEARCH, "goal.maximize=tofu/forget_qualit"), ("goal.maximize", "tofu/forget_qualit")
    ),
    "grid of an interval": Refused(
        (*SEARCH, "hydra/sweeper/sampler=grid"), ("method.lr: a grid needs values or a range",)
    ),
    "search of nothing": Refused(("-m", "hydra/sweeper=optuna"), ("nothing is searched",)),
    "database of a search": Refused(
        (*SEARCH, "hydra.sweeper.storage=nosuch://host/study"),
        ("hydra.sweeper.storage=nosuch://host/study: ",),
    ),
    "no UTF-8": Refused(("method.name=a\udcff",), ("not UTF-8 text",)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name, tmp_path):
    (tmp_path / "afile").write_text("mine")
    (tmp_path / "latin1.txt").write_bytes("é".encode("latin1"))
    check_refusal(tmp_path, REFUSED[name])
    assert (tmp_path / "afile").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"afile", "latin1.txt"}


VARIABLES = {
    "torchrun": ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "0"}, "2 processes that torchrun"),
    "mpirun": ({"OMPI_COMM_WORLD_SIZE": "4"}, "hardware.processes=4"),
    "mpiexec": ({"PMI_SIZE": "3"}, "hardware.processes=3"),
    "a cluster's": ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "10.0.0.1"}, "unset WORLD_SIZE"),
    "W&B's": ({"WANDB_MODE": "offlin"}, "WANDB_MODE=offlin: W&B has no such mode (did you mean offline"),
}


@pytest.mark.parametrize("name", VARIABLES)
def test_variables_that_are_refused(name, tmp_path, monkeypatch):
    given, says = VARIABLES[name]
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr("tests.launch.commands.ENVIRONMENT", {})
    check_refusal(tmp_path, Refused(("model.nano.layers=1",), (says,)))


@pytest.mark.parametrize(
    "given",
    [
        {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "x", "PMI_SIZE": "1", "HOME": "/h"},
        {"WORLD_SIZE": "4", "HOME": "/h"},  # of no process in particular
        {"WORLD_SIZE": "many", "RANK": "0", "ACCELERATE_MIXED_PRECISION": "fp16", "HOME": "/h"},
    ],
)
def test_variables_that_tell_of_one_process_are_dropped(given):
    foreign_launchers.settle(given)
    assert given == {"HOME": "/h"}


def test_in_a_slurm_step_slurm_tells_how_many_there_are():
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_STEP_NODELIST": "a[1-2]"}
    given = step | {"WORLD_SIZE": "2", "RANK": "1", "PMI_SIZE": "2"}
    foreign_launchers.settle(given)
    assert given == step
    with pytest.raises(UserError, match="torchrun"):
        foreign_launchers.settle(step | {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2"})


def test_modes_of_wandb():
    asked = ("Offline", "dryrun", "online", "shared", " DISABLED ", "")
    found = [mode_of_variables({"WANDB_MODE": mode}) for mode in asked]
    assert found == ["offline", "offline", "online", "online", "disabled", None]
    assert mode_of_variables({"WANDB_MODE": "online", "WANDB_DISABLED": "true"}) == "disabled"
    assert mode_of_variables({"WANDB_DISABLED": "false"}) is None


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("llama-3.2-1b", "llama-3.2-1b"), ("org/my model", "org_my_model"), ("..", ""), ("../../x", "_.._x"),
        (".hidden", "hidden"), ("a\nb\x07", "a_b_"), (" ", ""), ("é" * 90, "é" * 40),
    ],
)  # fmt: skip
def test_names_that_become_folders(text, name):
    assert folder_name(text) == name


def test_a_file_does_not_take_the_place_of_a_folder(tmp_path):
    (tmp_path / "config.yaml").mkdir()
    (tmp_path / "config.yaml" / "mine").touch()
    with pytest.raises(IsADirectoryError), replacing(tmp_path / "config.yaml") as temporary:
        temporary.touch()
    assert (tmp_path / "config.yaml" / "mine").is_file()


def test_what_nobody_expected_is_two_lines_and_a_file(capsys, monkeypatch):
    def failing() -> int:
        raise TypeError("no such\nthing")

    assert guarded(failing) == 1
    head, place = capsys.readouterr().err.splitlines()
    assert head == "TypeError: no such thing"
    log = Path(place.split(" (")[0].removeprefix("the traceback is in "))
    assert "in failing" in log.read_text()
    log.unlink()
    monkeypatch.setenv("UNLEARN_DEBUG", "1")
    assert guarded(failing) == 1
    assert "Traceback" in capsys.readouterr().err


def test_each_warning_is_shown_once_and_only_the_first():
    texts = Counter({"a": 2} | {f"w{i}": 1 for i in range(6)})
    lines = warning_lines(texts, "x/run.log")
    assert lines[:2] == ["warning (2 jobs): a", "warning: w0"]
    assert lines[5:] == ["… and 2 more warnings in x/run.log"]


def test_what_ended_a_process_is_in_its_log(tmp_path):
    log = tmp_path / "run.log"
    log.write_text(
        "2026-01-01 10:00:00,1 ERROR launch.run.worker: ConfigError: 1 problem:\n  - seed\n"
        "2026-01-01 10:00:01,1 INFO launch.run.execute: on\n"
    )
    assert last_error(log) == "1 problem:\n  - seed"
    assert last_error(tmp_path / "gone.log") == ""


@pytest.mark.parametrize(
    ("benchmark", "has", "options", "key", "possible"),
    [
        ("tofu", {"forget_eval"}, {}, "tofu/forget/probability", True),
        ("tofu", {"forget_eval"}, {}, "tofu/retain/probability", False),
        ("tofu", {"forget_eval"}, {}, "tofu/mia/min_k_low", True),
        ("tofu", {"forget_eval"}, {"mia": False}, "tofu/mia/min_k_low", False),
        ("tofu", {"forget_eval"}, {"gradients": False}, "tofu/mia/gradnorm", False),
        ("tofu", {"forget_eval"}, {"generation": False}, "tofu/forget/rougeL_recall", False),
        ("tofu", {"forget_eval"}, {"generation": False}, "tofu/forget/truth_ratio", True),
        ("tofu", {"forget_eval"}, {"memorization_only": True}, "tofu/forget/truth_ratio", False),
        ("tofu", {"forget_eval"}, {"memorization_only": True}, "tofu/forget/exact_memorization", True),
        ("tofu", {"forget_eval"}, {"memorization_only": True}, "tofu/mia/min_k", True),
        ("tofu", {"forget_eval"}, {}, "tofu/forget/fluency", False),  # without a classifier
        ("tofu", {"forget_eval"}, {"min_k": 3}, "tofu/mia/min_k", True),  # refused elsewhere
        ("sampling", {"forget_eval"}, {}, "sampling/forget/leakage_at_4_high", True),
        ("muse", {"verbmem"}, {}, "muse/forget/verbmem/missing", True),
        ("general", set(), {}, "general/wikitext/word_perplexity", True),
    ],
)
def test_metrics_that_benchmarks_can_give(benchmark, has, options, key, possible):
    assert find(benchmark)
    assert can_be(key, metrics_of(benchmark, has, options)) == possible


def test_a_cluster_says_how_large_an_array_may_be(tmp_path, monkeypatch):
    tool = tmp_path / "scontrol"
    tool.write_text("#!/bin/sh\necho 'MaxArraySize            = 300'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    array_limit.cache_clear()
    assert array_limit() == 300
    tool.unlink()
    array_limit.cache_clear()
    assert array_limit() == 1001
    array_limit.cache_clear()


@pytest.mark.slow
def test_a_run_survives_its_terminal_and_its_surroundings(tmp_path):
    """Each in a process of its own, as a user meets it."""
    command = f"'{sys.executable}' -m launch.cli {' '.join(TINY)}"
    plain = {key: value for key, value in os.environ.items() if key != "HOME"}
    environment = plain | {"PYTHONPATH": str(ROOT), "COLUMNS": "0", "OMP_NUM_THREADS": "none"}
    odd = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "WORLD_SIZE": "1", "RANK": "0", "PYTHONUTF8": "0"}
    for end in (">&-", "| head -1; exit ${PIPESTATUS[0]}"):  # the run is made by the first
        shell = ["bash", "-c", f"{command} {end}"]
        shown = subprocess.run(shell, cwd=tmp_path, env=environment | odd, capture_output=True, text=True)
        assert shown.returncode == 0, shown.stderr[-2000:]
        assert "Error" not in shown.stderr
        assert len(list(tmp_path.glob("runs/grad_ascent-*/results.json"))) == 1


@pytest.mark.slow
def test_warnings_of_a_run_come_to_the_terminal_and_one_name_is_one_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.launch.commands.ENVIRONMENT", {"WANDB_MODE": "offline", "COLUMNS": "200"})
    online = [one for one in TINY if one != "tracker=disabled"]
    given = [*online, "model.name=org/mine", "tracker.project=a/b"]
    shown = done(tmp_path, *given)
    assert "warning: tracker wandb stopped" in shown.out
    (made,) = tmp_path.glob("runs/grad_ascent-*")
    assert made.name.startswith("grad_ascent-authors-forget10-org_mine-")
    again = unlearn(tmp_path, "-m", *given)
    assert again.out.count("(complete)") == 2
