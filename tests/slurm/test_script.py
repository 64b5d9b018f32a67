"""What a sweep would be submitted with; no Slurm is needed to say it."""

from __future__ import annotations

import pytest

from launch.slurm import requeue
from tests.launch.commands import done, unlearn
from unlearn.signals import on_stop

pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra `slurm` is not installed")

OPTIONS = [
    "hardware.slurm.account=1234", "hardware.slurm.qos=long", "hardware.slurm.partition='a,b'",
    "hardware.slurm.memory_gb=40", "hardware.slurm.concurrency=3", "hardware.slurm.warning_s=90",
    "hardware.slurm.setup=['module load cuda']", "hardware.slurm.additional={mail-type: END}",
    "hardware.slurm.comment='for whom?'",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hardware", "lines"),
    [
        ("gpu", ["--gpus-per-node=1", "--nodes=1", "--ntasks-per-node=1"]),
        ("slurm-gpu", ["--gpus-per-node=1", "--cpus-per-task=8"]),
        ("slurm-gpu-8-zero3", ["--gpus-per-node=8", "--nodes=1", "--exclusive"]),
        ("slurm-gpu-2x8-zero3", ["--gpus-per-node=8", "--nodes=2", "--ntasks-per-node=1"]),
    ],
)
def test_what_hardware_asks_for_is_in_the_script(tmp_path, hardware, lines):
    shown = done(
        tmp_path, "-m", "dry_run=true", f"hardware={hardware}", "hydra/launcher=slurm", "method=npo,rmu",
        "seed=0,1", *OPTIONS
    )  # fmt: skip
    asked = {
        *lines, "--account=1234", "--qos=long", "--partition=a,b", "--array=0-3%3", "--signal=USR2@90",
        "--mem=40GB", "--mail-type=END", "--comment='for whom?'",
    }  # fmt: skip
    wanted = {f"#SBATCH {option}" for option in asked} | {"module load cuda"}
    assert wanted <= set(shown.out.splitlines())
    assert not (tmp_path / "runs").exists()


def test_cores_that_nobody_asked_for_are_warned_of(tmp_path):
    eight = ("-m", "dry_run=true", "hardware=gpu-8", "hydra/launcher=slurm", "seed=0,1")
    assert "asks for no cores, so that 8 processes share one" in done(tmp_path, *eight).err
    asked = "hardware.slurm.additional={cpus-per-gpu: 8}"
    assert "asks for no cores" not in done(tmp_path, *eight, asked).err
    other = unlearn(tmp_path, "-m", "hydra/launcher=submitit_slurm", "seed=0,1")
    assert (other.code, "use hydra/launcher=slurm" in other.err) == (2, True)


def test_without_m_or_sbatch_it_is_refused(tmp_path, monkeypatch):
    assert "add -m" in unlearn(tmp_path, "hydra/launcher=slurm").err
    monkeypatch.setenv("PATH", str(tmp_path))
    shown = unlearn(tmp_path, "-m", "hydra/launcher=slurm", "seed=0,1")
    assert shown.code == 2
    assert "no sbatch or srun on PATH" in shown.err


def test_what_is_asked_of_slurm_survives_the_signals_that_stop_the_job(tmp_path, monkeypatch):
    scontrol = tmp_path / "scontrol"  # to which Slurm sends the signal as well, before it can answer
    scontrol.write_text(f"#!/bin/sh\nkill -TERM $$\ntouch '{tmp_path}/asked'\necho JobState=CANCELLED\n")
    scontrol.chmod(0o755)
    job = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "1", "PATH": f"{tmp_path}:/usr/bin:/bin"}
    for key, value in job.items():
        monkeypatch.setenv(key, value)
    with on_stop(lambda _: pytest.fail("a job that was cancelled is put back")), pytest.raises(SystemExit):
        requeue()
    assert (tmp_path / "asked").is_file()
