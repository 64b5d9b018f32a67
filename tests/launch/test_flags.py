"""Hydra's flags, one by one, as someone who knows Hydra uses them; folders of one's own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from tests.launch.commands import done
from tests.paths import ROOT
from tests.refusals import Refused, check_refusal
from unlearn import plugins

pytestmark = pytest.mark.slow  # many commands

MINE = 'name: {name}\nsource: "mine"\nforget: {{objective: ascent}}\n'
SMALL = (
    "tracker=disabled", "model.nano.hidden_size=16", "model.nano.layers=1", "model.nano.heads=2",
    "model.finetune.steps=2", "method.steps=2", "eval=none", "hardware.threads=1",
    "dataset.options.authors=10",
)  # fmt: skip


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A folder with two folders of options, and a primary file in one of them."""
    for folder, name in (("one", "mine"), ("two", "other")):
        (tmp_path / folder / "method").mkdir(parents=True)
        (tmp_path / folder / "method" / f"{name}.yaml").write_text(MINE.format(name=name))
    (tmp_path / "one" / "study.yaml").write_text(
        "defaults:\n  - config\n  - override method: mine\n  - _self_\nseed: 3\n"
    )
    return tmp_path


def shown(cwd: Path, *arguments: str) -> dict:
    return yaml.safe_load(done(cwd, *arguments).out)


def test_version(tmp_path):
    lines = done(tmp_path, "--version").out.splitlines()
    assert lines == [
        f"{name} {version(name)}" for name in ("unlearn-lab", "torch", "transformers", "deepspeed")
    ]
    more = done(tmp_path, "-v", "--version").out.splitlines()
    assert more[: len(lines)] == lines
    assert more[len(lines)].startswith("processor ")
    assert more[len(lines) + 1].startswith("kernels of linear layers")


@pytest.mark.parametrize(("chosen", "read"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "active"}, "ACTIVE")])
def test_threads_that_wait_sleep_unless_the_user_says_otherwise(tmp_path, chosen, read):
    """As OpenMP itself says, which reads its environment once."""
    own = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    own |= {"OMP_DISPLAY_ENV": "true", "PYTHONPATH": str(ROOT)} | chosen
    command = [sys.executable, "-m", "launch.cli", "--version", "-v"]
    ran = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True, check=True)
    assert re.search(rf"OMP_WAIT_POLICY\s*=\s*'{read}'", ran.stderr)


def test_cfg_job_and_package(tmp_path):
    job = shown(tmp_path, "--cfg", "job", "method=satimp")
    assert (job["method"]["name"], job["seed"], "hydra" in job) == ("satimp", 0, False)
    out = done(tmp_path, "-c", "job", "--package", "method.forget", "method=satimp").out
    assert out.startswith("# @package method.forget\n")
    assert yaml.safe_load(out) == job["method"]["forget"]
    assert done(tmp_path, "-c", "job", "-p", "seed", "seed=4").out == "# @package seed\n4\n"
    assert done(tmp_path, "-c", "job", "-p", "method.clip").out == "# @package method.clip\nnull\n"


def test_cfg_hydra_and_resolve(tmp_path):
    section = shown(tmp_path, "--cfg", "hydra")["hydra"]
    assert section["run"]["dir"] == "${unlearn_run_dir:}"
    assert section["runtime"]["choices"]["method"] == "npo"
    resolved = shown(tmp_path, "--cfg", "hydra", "--resolve", "root=there", "hydra.job.name=me")["hydra"]
    assert "there/npo-authors-forget10-nano-" in resolved["run"]["dir"]
    assert resolved["job"]["name"] == "me"


def test_cfg_all(tmp_path):
    whole = shown(tmp_path, "--cfg", "all", "seed=5")
    assert (whole["seed"], whole["hydra"]["overrides"]["task"]) == (5, ["++seed=5"])


@pytest.mark.parametrize(
    ("topic", "says"),
    [
        ("searchpath", "| main     | file://"),
        ("defaults", "| method/npo "),
        ("defaults-tree", "method: npo"),
        ("config", "Defaults List"),
        ("plugins", "BashCompletion"),
        ("all", "Config search path"),
    ],
)
def test_info(tmp_path, topic, says):
    assert says in done(tmp_path, "--info", topic).out


def test_hydra_help(tmp_path):
    assert "--config-dir,-cd" in done(tmp_path, "--hydra-help").out


# -- folders of one's own ---------------------------------------------------------------------------------


def name_of(folders: Path, *arguments: str) -> str:
    return shown(folders, "--cfg", "job", "-p", "method", *arguments)["name"]


def test_config_dir(folders):
    assert name_of(folders, "--config-dir", "one", "method=mine") == "mine"
    assert name_of(folders, f"--config-dir={folders}/one", "method=mine") == "mine"
    assert name_of(folders, "-cd", "one", "method=mine") == "mine"


def test_config_name(folders):
    job = shown(folders, "--config-dir", "one", "--config-name", "study", "--cfg", "job", "method.lr=1e-3")
    assert (job["method"]["name"], job["seed"], job["method"]["lr"], job["model"]["name"]) == (
        "mine", 3, 1e-3, "nano",
    )  # fmt: skip


def test_search_path(folders):
    assert name_of(folders, f"hydra.searchpath=[file://{folders}/two]", "method=other") == "other"
    given = f"hydra.searchpath=['file://{folders}/one','file://{folders}/two']"
    assert [name_of(folders, given, f"method={name}") for name in ("mine", "other")] == ["mine", "other"]
    package = "hydra.searchpath=[pkg://eval]"  # any package will do: nothing of it is needed
    assert name_of(folders, package, "method=npo") == "npo"


def test_variable(folders, monkeypatch):
    monkeypatch.setenv("UNLEARN_CONFIG_PATH", f"{folders}/one{os.pathsep}{folders}/two")
    assert [name_of(folders, f"method={name}") for name in ("mine", "other")] == ["mine", "other"]
    here = folders / "configs" / "method"
    here.mkdir(parents=True)
    (here / "third.yaml").write_text(MINE.format(name="third"))
    assert [name_of(folders, f"method={name}") for name in ("mine", "third")] == ["mine", "third"]


def test_an_option_with_the_name_of_a_preset_is_refused_wherever_it_is_chosen(folders):
    own = folders / "configs" / "method"
    own.mkdir(parents=True)
    (own / "npo.yaml").write_text(MINE.format(name="npo"))
    for arguments in (("method=npo",), ("seed=1",)):  # npo is the default
        check_refusal(folders, Refused(arguments, ("method=npo", "has the name of", "choose another name")))
    (folders / "launch").mkdir()
    (folders / "launch" / "configs").symlink_to(folders / "configs")  # as in a checkout of the project
    assert name_of(folders, "method=npo") == "npo"


def test_own_options_are_among_the_others(folders, monkeypatch):
    monkeypatch.setenv("UNLEARN_CONFIG_PATH", f"{folders}/one")
    text = (folders / "one/method/mine.yaml").read_text()
    (folders / "one/method/mine.yaml").write_text(f"# ascent of my own\n{text}")
    assert "  mine                        ascent of my own" in done(folders, "--help").out
    check_refusal(folders, Refused(("method=mime",), ("method=mime", "did you mean mine")))
    check_refusal(
        folders,
        Refused(("method=mine", "method.forget.scale=1"), ("method.forget.scale", "ascent has no option")),
    )
    assert "mine-authors" in done(folders, "dry_run=true", "method=mine").out


def test_plug_ins_lie_beside_the_options(folders, monkeypatch):
    monkeypatch.setattr(plugins, "_OWN", {})
    (folders / "one" / "beside_the_options.py").write_text(
        "from jaxtyping import Float\nfrom torch import Tensor\n"
        'def beside_the_options(logp: Float[Tensor, " N"]) -> Float[Tensor, " N"]:\n    return logp\n'
    )
    (folders / "one/method/mine.yaml").write_text(
        MINE.format(name="mine").replace("ascent", "beside_the_options")
    )
    (folders / "work").mkdir()
    assert (
        "mine-authors"
        in done(folders / "work", "-cd", "../one", "-cd", "../two", "method=mine", "dry_run=true").out
    )
    wrong = ("-cd", "../one", "method=mine", "method.forget.objective=beside_the_option", "dry_run=true")
    says = ("did you mean beside_the_options", f"beside_the_option.py in {folders}/work or {folders}/one")
    check_refusal(folders / "work", Refused(wrong, says))


def test_the_folder_also_counts_for_help_and_subcommands(folders):
    for arguments in (("--help",), ("list", "method"), ("show", "method=mine")):
        assert "mine" in done(folders, "--config-dir", "one", *arguments).out.split()


REFUSED = {
    "flag": Refused(("--multi",), ("--multi:", "did you mean --multirun")),
    "a flag after an override": Refused(
        ("method=npo", "-m", "--dry-run", "seed=0,1"), ("--dry-run: is a key; write dry_run=true",)
    ),
    "a key as a flag": Refused(("--dry-run",), ("--dry-run: is a key; write dry_run=true",)),
    "a wrong value in a sweep": Refused(
        ("-m", "seed=7,abc", "method.epochs=1,-2", "method.forget.beta=0.1,0.2"),
        ("seed='abc' (command line): input should be a valid integer", "method.epochs=-2"),
    ),
    "a wrong option of a plug-in in a sweep": Refused(
        ("-m", "method=npo", "method.forget.beta=0,0.1", "seed=0,1"),
        ("problem in the configuration:\n  - method.forget.beta=0: input should be greater than 0",),
    ),
    "a section": Refused(
        ("model.lora=8",), ("model.lora=8", "it is a section: set a key of it, as model.lora.r=…")
    ),
    "one of a list": Refused(("method.train=x.mlp",), ("give a list, as 'method.train=[x.mlp]'",)),
    "a key of another section": Refused(("steps=3",), ("steps=3", "did you mean method.steps?")),
    "a key further in": Refused(("method.beta=1",), ("did you mean method.forget.beta?",)),
    "a name of Hugging Face": Refused(("method.learning_rate=1",), ("did you mean method.lr?",)),
    "an option in capitals": Refused(("method=SimNPO",), ("did you mean simnpo",)),
    "value": Refused(("--cfg", "jobs"), ("--cfg", "'job'", "unlearn --help")),
    "config dir": Refused(("--config-dir", "nope"), ("--config-dir=nope", "no such folder")),
    "config name": Refused(
        ("--config-dir", "one", "--config-name", "studi"), ("studi", "did you mean study")
    ),
    "config path": Refused(("--config-path", "one"), ("--config-path=one", "--config-dir")),
    "search path": Refused(("hydra.searchpath=one",), ("hydra.searchpath=one", "give a list")),
    "searched folder": Refused(("hydra.searchpath=[file:///nope]",), ("file:///nope", "no such folder")),
    "searched package": Refused(("hydra.searchpath=[pkg://nope]",), ("pkg://nope", "no package nope")),
    "scheme": Refused(("hydra.searchpath=[s3://x]",), ("s3://x", "file://")),
    "own primary with the project's name": Refused(
        ("-cd", "two", "--config-name", "config"),
        ("two/config.yaml", "has the name of the project's"),
    ),
    "no YAML": Refused(
        ("-cd", "two", "method=broken"), ("no valid YAML", "two/method/broken.yaml", "line 2")
    ),
    "key of an own option": Refused(
        ("-cd", "two", "method=typo"), ("method.forgt=", "two/method/typo.yaml)", "did you mean forget")
    ),
    "key inside a key": Refused(("dataset.optoins.authors=3",), ("dataset.optoins", "(command line)")),
    "a folder too deep": Refused(("-cd", "one/method", "method=mine"), ("method=mine", "the folder above")),
    "an ending": Refused(("-cd", "two", "method=why"), ("why.yml why.yaml",)),
    "folder of a sweep": Refused(("hydra.sweep.dir=x",), ("hydra.sweep.dir=x", "hydra.run.dir")),
    "folder of a run": Refused(("-m", "hydra.run.dir=x", "seed=0,1"), ("hydra.run.dir=x", "hydra.sweep.dir")),
    "part": Refused(("--cfg", "job", "-p", "methd"), ("--package methd", "did you mean method")),
    "resolve alone": Refused(("--resolve",), ("--resolve", "--cfg")),
    "package alone": Refused(("-p", "method"), ("--package", "--cfg")),
    "two at once": Refused(("-m", "--cfg", "job"), ("--cfg and --multirun", "one of them")),
    "a mode": Refused(("hydra.mode=MANY",), ("hydra.mode=MANY", "MULTIRUN")),
    "several values to be shown": Refused(("--cfg", "hydra", "seed=0,1"), ("seed=0,1", "-m")),
    "several values": Refused(("seed=0,1", "dry_run=true"), ("seed=0,1", "-m")),
    "a pickle": Refused(("--experimental-rerun", "config.pickle"), ("config.pickle", "folder of a run")),
    "a run with changes": Refused(("--experimental-rerun", "one", "seed=1"), ("without changes",)),
    "no run": Refused(("--experimental-rerun", "one"), ("--experimental-rerun=one", "config.yaml")),
    "completion": Refused(("-sc", "install=tcsh"), ("install=tcsh", "bash")),
    "a shell": Refused(("-sc", "bash"), ("install=bash",)),
    "deletion": Refused(("~method.forgt",), ("method.forgt",)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(folders, name):
    (folders / "two" / "config.yaml").write_text("defaults: []\n")
    (folders / "two" / "method" / "broken.yaml").write_text("name: broken\nforget: {objective: ascent\n")
    (folders / "two" / "method" / "typo.yaml").write_text(MINE.format(name="typo").replace("forget", "forgt"))
    (folders / "two" / "method" / "why.yml").write_text(MINE.format(name="why"))
    check_refusal(folders, REFUSED[name])


def test_signs(tmp_path):
    job = shown(tmp_path, "--cfg", "job", "++seed=2", "~method.retain", "+method.batch=8")
    assert (job["seed"], job["method"]["retain"], job["method"]["batch"]) == (2, None, 8)


# -- completion -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "offers"),
    [
        ("unlearn meth", {"method=", "method."}),
        ("unlearn co", {"compare"}),
        ("unlearn list obj", {"objective"}),
        ("unlearn show method=npo-k", {"method=npo-kl"}),
        ("unlearn method=satim", {"method=satimp", "method=satimp-muse", "method=satimp-wmdp"}),
        ("unlearn method.forget_", {"method.forget_only=", "method.forget_weight="}),
        ("unlearn method=satimp method.forget.wei", {"method.forget.weighting."}),
        ("unlearn -m hardware.z", {"hardware.zero="}),
        ("unlearn hydra/laun", {"hydra/launcher="}),
        ("unlearn hydra.run.", {"hydra.run.dir="}),
        ("unlearn --config-dir one method=mi", {"method=mine"}),
        ("unlearn --config-d", {"--config-dir"}),
    ],
)
def test_what_completion_offers(folders, monkeypatch, line, offers):
    monkeypatch.setenv("COMP_LINE", line)
    assert offers <= set(done(folders, "-sc", "query=bash").out.split())


def test_completion_in_bash(tmp_path, monkeypatch):
    """What a user puts into a profile, and then types."""
    monkeypatch.setattr("sys.argv", ["unlearn"])
    script = done(tmp_path, "-sc", "install=bash").out
    (tmp_path / "unlearn").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m launch.cli "$@"\n')
    (tmp_path / "unlearn").chmod(0o755)
    asked = (
        'COMP_LINE="unlearn method=simn"; COMP_POINT=${#COMP_LINE}; COMP_CWORD=1; hydra_bash_completion; '
        'echo "${COMPREPLY[@]}"; complete -p unlearn'
    )
    shell = subprocess.run(
        ["bash", "--norc", "-c", f"{script}\n{asked}"], text=True, capture_output=True, check=True,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    offered, installed = shell.stdout.splitlines()
    assert {"method=simnpo", "method=simnpo-muse"} <= set(offered.split())
    assert all(each.startswith("method=simn") for each in offered.split())
    assert "hydra_bash_completion unlearn" in installed
    assert "unset hydra_bash_completion" in done(tmp_path, "-sc", "uninstall=bash").out


# -- where runs go ----------------------------------------------------------------------------------------


def test_folders_of_runs_and_sweeps_and_a_run_again(folders):
    """`hydra.mode`, `hydra.sweep.dir`, `hydra.sweep.subdir`, `hydra.run.dir`, `--experimental-rerun`."""
    sweep = ("hydra.mode=MULTIRUN", "hydra.sweep.dir=sweep", "hydra.sweep.subdir=s${seed}", "seed=0,1")
    done(folders, "--config-dir", "one", "--config-name", "study", *SMALL, *sweep)
    runs = {
        path.parent.name: yaml.safe_load(path.read_text()) for path in folders.glob("sweep/*/config.yaml")
    }
    assert {name: run["method"]["name"] for name, run in runs.items()} == {"s0": "mine", "s1": "mine"}
    done(folders, *SMALL, "--run", "hydra.run.dir=here", "-cd", "one", "method=mine")
    again = done(folders, "--experimental-rerun", "here")
    assert "run: here (complete)" in again.out
    (folders / "here" / ".lock").unlink()
    (folders / "here" / ".lock").mkdir()  # that cannot be locked, as a folder of another user cannot
    assert "run: here (complete)" in done(folders, "--experimental-rerun", "here").out
    (folders / "here" / ".lock").rmdir()
    (folders / "here" / "results.json").unlink()
    assert "run: here (complete)" not in done(folders, "--experimental-rerun", "here/config.yaml").out
    assert (folders / "here" / "results.json").is_file()


def read_only(folder: Path, *commands: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Commands in a namespace of their own, where a folder is mounted so that it can only be read."""
    mount = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1"'
    shell = ["unshare", "-rm", "sh", "-c"]
    try:
        subprocess.run([*shell, mount, "sh", str(folder)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a folder cannot be mounted here")
    code = f"from launch.cli import command; print([command([*each]) for each in {commands!r}])"
    return subprocess.run(
        [*shell, f'{mount} && exec "$2" -c "$3"', "sh", str(folder), sys.executable, code],
        cwd=folder.parent, text=True, capture_output=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_a_complete_run_on_a_disk_that_is_read_only_is_used(tmp_path):
    root = tmp_path / "runs"
    done(tmp_path, *SMALL)
    shown = read_only(root, SMALL, (*SMALL, "seed=3"))
    assert shown.stdout.splitlines()[-1] == "[0, 2]", shown.stderr
    assert "(complete)" in shown.stdout
    assert "report.html (not written again: its folder cannot be written)" in shown.stdout
    assert shown.stderr == "root=runs: it cannot be written; choose another path\n"


def test_what_training_has_no_use_for_is_imported_after_it(tmp_path):
    """The memory of a small model's training is mostly that of imports."""
    code = (
        "import sys; from launch.cli import command; from unlearn.training.trainer import Trainer; "
        "step = Trainer.step; late = {'pyarrow', 'plotly', 'mlflow', 'wandb', 'pandas', 'lm_eval'}; "
        "Trainer.step = lambda *a: (print('loaded:', late & set(sys.modules)), step(*a))[1]; "
        f"assert command({[*SMALL]}) == 0"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "loaded: set()" in done.stdout
