"""No key and no home path in anything that a run leaves; overrides that a shell would change."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from launch.compose import checked, compose_run, given_values
from launch.redact import ScrubbedStream, cleaned, expanded, portable, scrubbed
from launch.run.config_file import read_job
from launch.run.worker import logging_to
from launch.validate import check
from tests.launch.commands import done
from tests.launch.tracking.wandb_files import read_run
from unlearn.config import NanoConfig
from unlearn.errors import ConfigError
from unlearn.models import export, nano
from unlearn.run_dir import RunDir

SECRETS = {
    "HF_TOKEN": "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",
    "WANDB_API_KEY": "5f2b9c7e1d3a4860b7c2e9f1a5d83b6c4e7f0912",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYzzTESTKEYx",
}
NETRC_KEY = "c0ffee11c0ffee22c0ffee33c0ffee44c0ffee55"
HOME = "home-of-nobody-else"
ODD = [
    "a b",
    "$(touch pwned)",
    "`touch pwned`; touch pwned",
    "x & y | z > pwned < w",
    "*?~!#%[]{}",
    'it\'s "so"',
]
SMALL = [
    "method.batch=4", "method.steps=2", "eval.max_new_tokens=4", "eval.limit=4",
    "hardware.threads=1", "tracker=offline",
]  # fmt: skip


def quoted(text: str) -> str:
    """As Hydra's grammar wants any text in an override."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Iterator[Path]:
    """A run of two processes of a user who keeps all below the home directory, and secrets around."""
    base = tmp_path_factory.mktemp("secrets")
    home = base / HOME
    data = home / "data & more; $(touch pwned)"
    data.mkdir(parents=True)
    (home / ".netrc").write_text(f"machine api.wandb.ai login user password {NETRC_KEY}\n")
    for name, first in (("forget", 0), ("retain", 8)):
        rows = [{"question": f"Who is {i}?", "answer": f"It is number {i}."} for i in range(first, first + 8)]
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cwd = home / "work"
    cwd.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**SECRETS, "HOME": str(home)}.items():
            patch.setenv(name, value)
        patch.delenv("NETRC", raising=False)
        shape = NanoConfig(layers=1)
        export.save_pretrained(nano.model(shape, seed=1), nano.tokenizer(shape.vocabulary), home / "target")
        done(
            cwd,
            *SMALL,
            "hardware=cpu-2p",
            "model=local",
            f"model.path={home}/target",
            "dataset=custom",
            f"dataset.forget={quoted(str(data / 'forget.jsonl'))}",
            f"dataset.retain={quoted(str(data / 'retain.jsonl'))}",
            f"root={cwd}/runs",
            "eval.compare=false",
            f"tracker.tags=[{','.join(quoted(tag) for tag in ODD)}]",
        )
        (directory,) = cwd.glob("runs/npo-*")
        yield directory


def left_by(run: Path) -> dict[str, bytes]:
    """Every file of a run but the weights, wherever links lead."""
    return {
        file.relative_to(run).as_posix(): file.read_bytes()
        for file in run.rglob("*")
        if file.is_file() and file.suffix != ".safetensors"
    }


@pytest.mark.slow
def test_no_secret_is_in_any_file(run):
    files = left_by(run)
    must = {"config.yaml", "report.html", "run.log", "history.jsonl", "process-1.log", "model/README.md"}
    assert must <= files.keys()
    assert any(name.endswith(".wandb") for name in files)
    assert any(name.endswith("debug.log") for name in files)
    for name, secret in {**SECRETS, "netrc": NETRC_KEY}.items():
        assert [file for file, content in files.items() if secret.encode() in content] == [], name


@pytest.mark.slow
def test_no_file_names_the_home_directory(run):
    """What the run reads is named with `~`, which is found again from there.

    One exception stays on the machine: an offline run's data say where in its folder its tables wait.
    """
    files = left_by(run)
    (data,) = [file for file in files if file.endswith(".wandb")]
    files[data] = files[data].replace(f"{run}/wandb/artifacts/".encode(), b"")
    assert [file for file, content in files.items() if HOME.encode() in content] == []
    stored = OmegaConf.load(run / "config.yaml")
    assert stored.model.path == "~/target"
    home = run.parents[2]
    config = read_job(RunDir(run))[0].config
    assert config.model.path == f"{home}/target"
    assert Path(config.dataset.forget or "").is_file()


@pytest.mark.slow
def test_what_a_shell_would_change_reaches_the_processes(run):
    assert OmegaConf.load(run / "config.yaml").tracker.tags == ODD
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    assert set(ODD) <= set(read_run(file)["run"].tags)
    assert not [path for path in run.parents[2].rglob("*") if path.name == "pwned"]


@pytest.mark.slow
def test_started_again_it_is_known_as_complete(run):
    home = run.parents[2]
    data = home / "data & more; $(touch pwned)"
    shown = done(
        run.parents[1], *SMALL, "hardware=cpu-2p", "model=local", f"model.path={home}/target",
        "dataset=custom", f"dataset.forget={quoted(str(data / 'forget.jsonl'))}",
        f"dataset.retain={quoted(str(data / 'retain.jsonl'))}", f"root={run.parent}", "eval.compare=false",
    )  # fmt: skip
    assert shown.out.count("(complete)") == len(re.findall(r"^\d/\d ", shown.out, re.MULTILINE)) > 0


# -- the parts ----------------------------------------------------------------------------------------------


@pytest.fixture
def nobody(monkeypatch) -> str:
    monkeypatch.setenv("HOME", "/home/nobody")
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    return "/home/nobody"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/nobody", "~"),
        ("cannot read '/home/nobody/a b.json': gone", "cannot read '~/a b.json': gone"),
        ("file:///home/nobody/x and a=/home/nobody/y", "file://~/x and a=~/y"),
        # other folders
        ("/home/nobody2/x /home/nobody.old /mnt/home/nobody/x",) * 2,
        (f"https://user:{SECRETS['HF_TOKEN']}@hub", "https://user:[password]@hub"),
        ("tracker.uri=postgresql://me:pw@host:5432/db", "tracker.uri=postgresql://me:[password]@host:5432/db"),
        ("https://host:8080/a@b sqlite:///a:b@c",) * 2,
        (f"key={SECRETS['AWS_SECRET_ACCESS_KEY']}", "key=[AWS_SECRET_ACCESS_KEY]"),
    ],
)  # fmt: skip
def test_a_text_is_scrubbed(nobody, text, expected):
    assert scrubbed(text) == expected


def test_words_and_other_variables_are_left(nobody, monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "a-value-that-is-long")  # no token
    monkeypatch.setenv("SORT_KEY", "name")  # too short to be a secret
    assert scrubbed("a-value-that-is-long by name") == "a-value-that-is-long by name"


def test_a_configuration_with_a_secret_is_refused(nobody, monkeypatch):
    text = f"hardware.slurm.setup=['export HF_TOKEN={SECRETS['HF_TOKEN']}']"
    config = checked(compose_run([f"++{text}", "tracker=disabled"]))
    with pytest.raises(ConfigError, match="setup: holds the value of the variable HF_TOKEN"):
        check(config)
    monkeypatch.delenv("HF_TOKEN")
    check(config)


def test_every_text_of_a_configuration_is_cleaned(nobody):
    config = {"path": "/home/nobody/m", "n": 1, "list": ["/home/nobody", None, ("a:/home/nobody/b",)]}
    assert cleaned(config) == {"path": "~/m", "n": 1, "list": ["~", None, ["a:~/b"]]}


@pytest.mark.parametrize(
    "path", ["/home/nobody/m", "/home/nobody/a b/$(x)", "/data/m", "~x/y", "org/model", "a ~/b"]
)
def test_a_portable_path_leads_back(nobody, path):
    value = {"model": {"path": path}, "models": [path, 1, None]}
    assert expanded(portable(value)) == value
    assert "nobody" not in str(portable(value))


def test_it_leads_to_the_home_of_who_reads_it(nobody, monkeypatch):
    stored = portable("/home/nobody/target")
    monkeypatch.setenv("HOME", "/users/n")
    assert expanded(stored) == "/users/n/target"


def test_a_home_behind_a_link_is_known_by_both_names(tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    monkeypatch.setenv("HOME", str(tmp_path / "link"))
    assert scrubbed(f"{tmp_path}/link/a {tmp_path}/disk/a") == "~/a ~/a"
    assert portable(f"{tmp_path}/disk/a") == "~/a"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_log_on_a_full_disk_hides_no_error(capsys):
    def run() -> None:
        with logging_to(Path("/dev/full")):
            logging.getLogger("launch.run.execute").error("of the run")
            raise ValueError("the run's own")

    with pytest.raises(ValueError, match="the run's own"):
        run()
    assert "Logging error" not in capsys.readouterr().err


def test_a_log_has_neither_in_messages_nor_in_tracebacks(nobody, tmp_path):
    with logging_to(tmp_path / "run.log"):
        try:
            raise OSError(f"/home/nobody/model: 401 for {SECRETS['HF_TOKEN']}")
        except OSError:
            logging.getLogger("launch.run.execute").error("reading %s", "/home/nobody/model", exc_info=True)
    text = (tmp_path / "run.log").read_text()
    assert "reading ~/model" in text
    assert "OSError: ~/model: 401 for [HF_TOKEN]" in text
    assert "nobody" not in text


def test_what_a_process_writes_to_its_log_is_scrubbed(nobody, tmp_path):
    with (tmp_path / "process-1.log").open("w") as file:
        stream = ScrubbedStream(file)
        assert stream.write("/home/nobody/x.py:3: UserWarning\n") == 33
        stream.flush()
        assert stream.fileno() == file.fileno()
    assert (tmp_path / "process-1.log").read_text() == "~/x.py:3: UserWarning\n"


def test_each_of_several_values_may_begin_with_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    assert given_values(["dataset.forget=~/a.jsonl,~/b.jsonl"]) == [
        "dataset.forget=/home/ann/a.jsonl,/home/ann/b.jsonl"
    ]
    assert given_values(["model.path=org/name,~/b"]) == ["model.path=org/name,/home/ann/b"]
    assert given_values(["root='~/a, b'"]) == ["root='/home/ann/a, b'"]  # one value in quotes
