"""Problems of single examples are reported by their ids, and everything else is measured."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from eval.benchmark import BenchmarkError
from eval.collection.records import Records
from eval.evaluate import evaluate
from tests.eval.eval_fixtures import encoder, examples, model
from tests.tolerance import PASS, approx
from unlearn.data.tokenization import DataError, Encoder, PromptFormat

QUICK = {"max_new_tokens": 3}


def run(directory, sets, net=None, code=None, **given):
    return evaluate(
        net or model(), code or encoder(), "tofu", sets, directory, options=QUICK, max_tokens=600, **given
    )


def problems(directory):
    file = directory / "tofu" / "problems.json"
    return json.loads(file.read_text())["problems"] if file.exists() else []


def with_one_changed(name, **change):
    found = examples(name)
    return [*found[:3], replace(found[3], **change), *found[4:]]


def test_nothing_wrong_leaves_no_problems(tmp_path):
    run(tmp_path, {"forget_eval": examples("forget")})
    assert problems(tmp_path) == []


def test_an_empty_answer(tmp_path):
    sets = {"forget_eval": with_one_changed("forget", answer=" ")}
    metrics = run(tmp_path, sets)
    reported = [line for line in problems(tmp_path) if line.startswith("forget/answer, example forget/3: ")]
    assert len(reported) == 1
    assert "an answer is empty" in reported[0]
    without = [e for e in examples("forget") if e.id != "forget/3"]
    rest = run(tmp_path / "rest", {"forget_eval": without})
    for key in ("probability", "extraction_strength", "rougeL_recall"):
        assert metrics[f"tofu/forget/{key}/missing"] == 1
        assert metrics[f"tofu/forget/{key}"] == approx(rest[f"tofu/forget/{key}"], terms=PASS)
    # Its paraphrased and perturbed answers are whole, and so is its truth ratio.
    assert "tofu/forget/truth_ratio/missing" not in metrics


def test_a_prompt_that_fills_the_length(tmp_path):
    question = "Where was Ada born? " * 20
    sets = {"forget_eval": with_one_changed("forget", question=question)}
    metrics = run(tmp_path, sets, code=replace(encoder(), max_length=100))
    reported = problems(tmp_path)
    assert any("forget/answer, example forget/3: the prompt alone has" in line for line in reported)
    assert all("dataset.max_length=100" in line for line in reported if "prompt alone" in line)
    assert metrics["tofu/forget/probability/missing"] == 1
    assert 0 < metrics["tofu/forget/probability"] < 1


def test_a_prompt_that_fills_the_models_context(tmp_path):
    net = model()
    net.config.max_position_embeddings = 100
    question = "Where was Ada born? " * 20
    metrics = run(tmp_path, {"forget_eval": with_one_changed("forget", question=question)}, net)
    reported = [line for line in problems(tmp_path) if line.startswith("forget/generation, example forget/3")]
    assert len(reported) == 1
    assert "fills the model's context of 100" in reported[0]
    assert metrics["tofu/forget/rougeL_recall/missing"] == 1


def test_a_generation_ends_where_the_context_does(tmp_path):
    net, sets = model(seed=5), {"forget_eval": [replace(examples("forget")[0], answer="Ada")]}
    (ids,) = encoder().prompts([examples("forget")[0].question or ""])

    def text(directory, limit):
        evaluate(net, encoder(), "tofu", sets, directory, options={"max_new_tokens": limit})
        return Records(directory / "tofu").generation("forget/generation").text

    short, long = text(tmp_path / "short", 1), text(tmp_path / "long", 20)
    assert short != long
    net.config.max_position_embeddings = len(ids) + 1
    assert text(tmp_path / "cut", 20) == short


def test_a_model_that_gives_nan(tmp_path):
    net = model()
    with torch.no_grad():
        net.model.norm.weight[0] = math.nan
    metrics = run(tmp_path, {"forget_eval": examples("forget")}, net)
    for metric in ("probability", "extraction_strength", "exact_memorization"):
        assert math.isnan(metrics[f"tofu/forget/{metric}"])  # and not as if all was forgotten
    assert "forget/answer, examples forget/0, forget/1, forget/2 and 8 more: the model gives NaN for it" in (
        problems(tmp_path)
    )
    stored = json.loads((tmp_path / "tofu" / "results.json").read_text())
    assert stored["tofu/forget/probability"] is None


def test_one_class_only_in_a_membership_attack(tmp_path):
    metrics = run(tmp_path, {"forget_eval": examples("forget"), "holdout": []})
    assert any("holdout" in line for line in problems(tmp_path))
    assert math.isnan(metrics.get("tofu/mia/loss", math.nan))
    assert metrics["tofu/forget/probability"] > 0


def test_a_retain_model_with_another_tokenizer(tmp_path):
    other = encoder()
    other.tokenizer.add_tokens(["quite new"])
    sets = {"forget_eval": examples("forget")}
    run(tmp_path / "retain", sets, model(seed=1), other)
    metrics = run(tmp_path, sets, retain_directory=tmp_path / "retain")
    assert any("retain model has another tokenizer" in line for line in problems(tmp_path))
    assert "tofu/forget_quality" not in metrics
    assert metrics["tofu/forget/probability"] > 0
    run(tmp_path / "same", sets, model(seed=1))
    assert "tofu/forget_quality" in run(tmp_path / "two", sets, retain_directory=tmp_path / "same")


def test_a_tokenizer_without_chat_template_is_reported_once(tmp_path):
    code = Encoder(encoder().tokenizer, PromptFormat())
    with pytest.raises(DataError, match=r"no chat template: set model\.prompt\.template"):
        run(tmp_path, {"forget_eval": examples("forget")}, code=code)


def test_a_tokenizer_without_an_end_token(tmp_path):
    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    with pytest.raises(DataError, match=r"no end-of-sequence token: set model\.prompt\.end"):
        run(tmp_path, {"forget_eval": examples("forget")}, code=Encoder(plain, PromptFormat("{question}")))


def test_a_dataset_without_any_set_of_the_benchmark(tmp_path):
    with pytest.raises(BenchmarkError, match=r"tofu scores forget_eval, .*none of them \(corpus\)"):
        run(tmp_path, {"corpus": examples("forget")})


def test_an_example_without_question(tmp_path):
    with pytest.raises(BenchmarkError, match=r"forget/3 has no question"):
        run(tmp_path, {"forget_eval": with_one_changed("forget", question=None)})
