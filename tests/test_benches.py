"""What the benches of methods and of the peer measure, and their arithmetic."""

from __future__ import annotations

import json
import time

import pytest

from benches import peer
from benches.cases import settings
from benches.methods import compare
from benches.peer_runs import copy_for_peer
from benches.presets import BATCH, VARIANTS, Row, as_measured, rows
from eval.benchmarks.tofu import METRICS
from tests.paths import ROOT
from unlearn.passes.product_times import on_machine

ROWS = rows()


def row(name: str) -> Row:
    (found,) = (each for each in ROWS if name in each.names)
    return found


def test_every_preset_that_trains_is_measured_once() -> None:
    names = [name for each in ROWS for name in each.names]
    presets = {file.stem for file in (ROOT / "configs" / "method").glob("*.yaml")}
    assert sorted(names) == sorted(set(names))
    # Nothing is trained; rules of separate gradients: NGDiff is compared with separate backwards; LUNAR needs
    # a file.
    assert presets - set(names) == {"none", "whp", "dsg", "ngdiff", "gru", "gru-npo", "lunar"}
    assert set(names) - presets == set(VARIANTS)


def test_rows_are_shared_by_presets_that_differ_in_numbers_alone() -> None:
    assert set(row("npo").names) == {"npo", "npo-altpo", "npo-wmdp"}
    assert row("satimp") == row("satimp-muse")
    assert row("rmu") != row("rmu-adaptive")
    assert set(row("npo-sam-wmdp").names) == {"npo-sam-wmdp", "npo-sam-muse"}
    assert row("dpo") != row("altpo")  # refusals are shorter than other answers
    assert row("kl_min") != row("kl_min, mask=answer")


@pytest.mark.parametrize(
    ("name", "aim"),
    [
        ("grad_diff", 1.1), ("satimp", 1.1), ("nlul without a teacher", 1.1), ("dpo", 1.1), ("undial", 1.6),
        ("kl_min, mask=answer", 1.6), ("kl_min", None), ("nlul", None), ("kto", None),
        ("npo-sam-wmdp", None), ("npo-wa-wmdp", 1.1),
    ],
)  # fmt: skip
def test_aims(name: str, aim: float | None) -> None:
    assert row(name).aim == aim


def test_a_preset_is_measured_with_the_benchs_batch_and_without_generating() -> None:
    method = as_measured(settings("method", "altpo"))
    assert (method.batch, method.steps, method.schedule) == (BATCH, None, "constant")
    assert (method.alternatives.source, method.alternatives.count) == ("mismatch", 5)


def test_ratios_are_of_cpu_time_and_of_tokens() -> None:
    seen: list[tuple[str, int]] = []

    def step(name: str, work: int, tokens: float) -> float:
        seen.append((name, work))
        until = time.process_time() + 0.01 * work
        while time.process_time() < until:
            pass
        return tokens

    found = compare(
        lambda n: step("base", 1, 10.0),
        {"a": lambda n: step("a", 3, 15.0), "b": lambda n: step("b", 1, 5.0)},
        2,
    )
    assert [name for name, _ in seen] == ["base", "a", "b", "base", "a", "b", "b", "a", "base"]
    a, b = found["a"], found["b"]
    # Three times the work for 1.5 times the tokens; as much work for half of them.
    assert (a.tokens, b.tokens) == (1.5, 0.5)
    assert a.step == pytest.approx(3.0, rel=0.25)
    assert a.per_token == pytest.approx(2.0, rel=0.25)
    assert b.per_token == pytest.approx(2.0, rel=0.25)
    assert a.low <= a.per_token <= a.high


def checkout(folder):
    for part in ("configs", "src/trainer", "src/evals"):
        (folder / part).mkdir(parents=True)
    return folder


def measured(seconds: list[float], peak: int = 100, imports: int = 60) -> peer.Measured:
    return {"seconds": seconds, "peak": peak, "imports": imports}


def test_the_peers_bench_names_presets_and_metrics_of_ours() -> None:
    for method in peer.METHODS.values():
        assert settings("method", method.preset)["name"] == method.preset
    assert set(peer.SAME.values()) <= set(METRICS)
    for preset, aims in peer.AIMS.items():
        assert settings("hardware", preset)["name"] == preset
        assert set(aims) <= {*peer.METHODS, peer.EVALUATION}


def test_without_a_peer_the_bench_points_to_plain_code(capsys: pytest.CaptureFixture[str]) -> None:
    peer.main([])
    assert "python -m benches.train" in capsys.readouterr().out


def test_the_peers_interpreter(tmp_path) -> None:
    with pytest.raises(SystemExit, match="no checkout of OpenUnlearning"):
        peer.interpreter(tmp_path)
    folder = checkout(tmp_path / "peer")
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    assert peer.interpreter(folder) == str(python)
    with pytest.raises(SystemExit, match="--python=absent-python: no such program"):
        peer.interpreter(folder, "absent-python")


def test_an_unknown_method_of_the_peer_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        peer.main(["--methods", "NPO,Forget"])
    assert "Forget: there are NPO, SatImp, GradDiff, DPO, UNDIAL" in capsys.readouterr().err


def test_ratios_to_the_peer_are_of_the_medians_of_a_round() -> None:
    rounds = [
        (measured([90.0, 4.0, 6.0, 8.0]), measured([50.0, 2.0, 2.0, 3.0], peak=50, imports=40)),
        (measured([90.0, 4.0, 4.0, 4.0]), measured([50.0, 4.0, 4.0, 4.0], peak=70, imports=40)),
    ]
    found = peer.figures(rounds, "")
    assert found["peer_over_ours"] == [1.5, 2.0, 2.5]  # 6/2 and 4/4
    assert found["seconds"] == {"peer": [4.0, 4.0, 5.5], "ours": [2.25, 3.5, 4.0]}
    assert (found["memory_ours_over_peer"], found["memory_above_imports_ours_over_peer"]) == (0.6, 0.5)
    # An evaluation is one number, which counts.
    assert peer.figures([(measured([9.0]), measured([3.0]))], "")["peer_over_ours"] == [3.0] * 3


def test_what_differs_from_the_peer_is_named() -> None:
    assert peer.other_loss({"loss": 18.0}, {"loss": 18.001}) == ""
    assert peer.other_loss({"loss": 18.0}, {"loss": 18.01}) == "not the same loss: 18, ours 18.01"
    ours = dict.fromkeys(peer.SAME.values(), 0.5)
    theirs = dict.fromkeys(peer.SAME, 0.5)
    assert peer.other_metrics({"metrics": theirs}, {"metrics": ours}) == ""
    difference = peer.other_metrics({"metrics": theirs | {"privleak": None}}, {"metrics": ours})
    assert difference == "not the same metrics: privleak None, ours 0.5"


def test_a_model_is_copied_under_the_peers_names(tmp_path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    config = {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}, "dtype": "float32"}
    (model / "config.json").write_text(json.dumps(config))
    (model / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "TokenizersBackend"}))
    (model / "chat_template.jinja").write_text("{{ messages }}")
    copy_for_peer(model, tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / "config.json").read_text()) == {
        "rope_theta": 1e4, "torch_dtype": "float32",
    }  # fmt: skip
    assert json.loads((tmp_path / "copy" / "tokenizer_config.json").read_text()) == {
        "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": "{{ messages }}",
    }  # fmt: skip


def test_the_processor_is_named_with_its_caps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert on_machine().endswith(", ONEDNN_MAX_CPU_ISA=AVX2")
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    assert "ONEDNN" not in on_machine()
