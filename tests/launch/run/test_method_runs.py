"""Whole runs of methods that need more than a loss: other models, edits, sampled answers, rules, sweeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.launch.run.test_run import SMALL_BUT_SHAPE, results, unlearn, weights
from tests.tolerance import PASS, approx, assert_close

pytestmark = pytest.mark.slow

SWEPT = "altpo,ngdiff,nlul,pdu,task_vector,reinforce,whp,whp-distilled,grun,rmu-wmdp"
QUICK = [
    "method.epochs=2", "eval.compare=false", "method.alternatives.max_new_tokens=6", "tracker=disabled",
    "eval.max_new_tokens=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Make one sweep over the methods, with one that fails (the model has too few layers)."""
    cwd = tmp_path_factory.mktemp("sweep")
    process = unlearn(cwd, "-m", f"method={SWEPT}", *QUICK)
    assert process.code == 2, process.err[-3000:]
    assert "method.forget.layer=8: the model has 4 layers" in process.err
    return cwd, process.out


def run_of(cwd: Path, method: str, root: str = "runs") -> Path:
    found = [p for p in (cwd / root).glob(f"{method}-authors-*") if (p / "eval").exists() or root != "runs"]
    assert len(found) == 1, found  # (a reinforced model that was built for another run has no evaluation)
    return found[0]


def history(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def test_the_sweep_ends_in_one_table_with_what_failed(swept):
    cwd, shown = swept
    (file,) = (cwd / "runs").glob("sweep-*.md")
    lines = [line.split(" | ") for line in file.read_text().splitlines()]
    assert [line[0].lstrip("| ") for line in lines[2:]] == SWEPT.split(",")
    assert "failed: 2 problems" in file.read_text()
    assert "failed: rmu-wmdp: 2 problems" in shown
    assert not list(cwd.glob("*.yaml"))  # nothing is left where the command was given


def test_every_run_of_it_moved_the_model(swept):
    cwd, _ = swept
    start = load_file(next((cwd / "runs").glob("finetune-*/model/model.safetensors")))
    for method in ("altpo", "ngdiff", "nlul", "pdu", "task_vector", "whp-distilled"):
        found = weights(run_of(cwd, method))
        assert max(float((found[name] - t).abs().max()) for name, t in start.items()) > 1e-5, method
    for method in ("whp", "grun"):  # these leave it as it is and change what it computes
        found = weights(run_of(cwd, method))
        assert all(torch.equal(found[name], t) for name, t in start.items()), method
    # Decoding against the reinforced model forgets; learning the forget set further does the opposite.
    forget = [results(run_of(cwd, method))["tofu/forget/probability"] for method in ("whp", "reinforce")]
    assert forget[0] < forget[1]


def test_a_task_vector_is_the_negated_training_update(swept):
    cwd, _ = swept
    start = load_file(next((cwd / "runs").glob("finetune-*/model/model.safetensors")))
    scale = ["method=task_vector", "method.update_scale=1", "root=once"]
    assert unlearn(cwd, *scale, *QUICK, "eval=none").code == 0
    learned = weights(run_of(cwd, "task_vector", "once"))
    for name, tensor in weights(run_of(cwd, "task_vector")).items():
        wanted = start[name] - 5 * (learned[name] - start[name])
        assert_close(tensor, wanted, condition=5)


def test_what_rules_and_schedules_say_is_in_the_history(swept):
    cwd, _ = swept
    first = history(run_of(cwd, "ngdiff"))[0]
    assert first["grad_norm/forget"] > 0
    assert first["grad_norm/retain"] > 0
    # Two unit vectors, one of them taken off: no longer than 2, no matter how long the gradients are.
    assert 0 < first["grad_norm"] <= 2
    probed = [row for row in history(run_of(cwd, "ngdiff")) if "autolr/lr" in row]
    assert probed
    assert {"autolr/a", "autolr/b", "autolr/r2", "autolr/accepted", "autolr/proposed"} <= set(probed[0])
    assert history(run_of(cwd, "pdu"))[-1]["rule/dual"] == 100  # its warm-up is longer than this run
    assert "loss/forget_gate" in history(run_of(cwd, "grun"))[0]


def test_sampled_answers_are_kept_and_can_be_read(swept):
    cwd, _ = swept
    (file,) = (cwd / "runs" / "cache" / "alternatives").glob("*.json")
    answers = json.loads(file.read_text())
    assert all("states other facts" in asked for asked in answers)
    assert all(len(some) == 5 and all(some) for some in answers.values())


def test_edits_are_loaded_with_the_model_and_add_up(swept):
    cwd, _ = swept
    first = run_of(cwd, "grun")
    given = [*SMALL_BUT_SHAPE, "model=local", "model.name=again", *QUICK, "dataset.options.authors=10"]
    again = unlearn(cwd, *given, f"model.path={first / 'model'}", "method=none", small=False)
    assert again.code == 0, again.err[-2000:]
    keys = [key for key in results(first) if key.startswith("tofu/")]
    measured = results(run_of(cwd, "none"))
    assert [measured[key] for key in keys] == approx([results(first)[key] for key in keys], terms=PASS)

    second = unlearn(
        cwd, *given, f"model.path={first / 'model'}", "method=grun", "root=second", "eval=none", small=False
    )
    assert second.code == 0, second.err[-2000:]
    folder = run_of(cwd, "grun", "second") / "model"
    kinds = [
        each["name"] for each in json.loads((folder / "interventions.json").read_text())["interventions"]
    ]
    assert kinds == ["grun", "grun"]
    before, after = (load_file(f / "interventions.safetensors") for f in (first / "model", folder))
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())  # the first request stays


def test_a_guardrail_is_fitted_on_a_given_autoencoder(swept):
    cwd, _ = swept
    torch.manual_seed(0)
    encode = torch.randn(64, 96)
    sae = {
        "W_enc": encode,
        "b_enc": torch.zeros(96),
        "W_dec": encode.T.contiguous(),
        "b_dec": torch.zeros(64),
    }
    save_file(sae, cwd / "sae.safetensors")
    process = unlearn(
        cwd, "method=dsg", f"method.intervention.sae={cwd / 'sae.safetensors'}",
        "method.intervention.layer=2", "method.intervention.threshold_percentile=0", *QUICK,
    )  # fmt: skip
    assert process.code == 0, process.err[-2000:]
    run = run_of(cwd, "dsg")
    assert (run / "model" / "interventions.safetensors").is_file()
    plain = results(run_of(cwd, "whp"))
    assert results(run)["tofu/forget/probability"] != plain["tofu/forget/probability"]


def test_a_weighting_by_annotated_spans(swept):
    cwd, _ = swept
    folder = next((cwd / "runs").glob("grun-*/eval/tofu"))
    import pyarrow.parquet as pq

    rows = [r for r in pq.read_table(folder / "examples.parquet").to_pylist() if r["set"] == "forget"]
    file = cwd / "important.json"
    file.write_text(json.dumps({r["id"]: [[0, max(1, len(r["answer"]) // 2)]] for r in rows}))
    weighting = "method.forget.weighting={name: annotated, normalise: true}"
    given = ["method=grad_diff", weighting, "eval=none", *QUICK]
    refused = unlearn(cwd, *given)
    assert refused.code == 2
    assert "dataset.annotations is not set" in refused.err
    process = unlearn(cwd, *given, f"dataset.annotations={file}")
    assert process.code == 0, process.err[-2000:]
