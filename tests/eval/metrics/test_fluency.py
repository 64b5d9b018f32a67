from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import DistilBertConfig, DistilBertForSequenceClassification, DistilBertTokenizer

from eval.evaluate import evaluate, score_directory
from eval.metrics.fluency import DetectorError, distinct, fluency, gibberish_detector
from tests.eval.eval_fixtures import encoder, examples, model
from tests.tolerance import PASS, approx, assert_close

nan = math.nan
LABELS = ("mild gibberish", "Clean", "noise", "word salad")
WORDS = ("a", "cat", "sat", "on", "the", "mat", "fgerf", "qsqsk")
TEXTS = ["a cat sat on the mat", "", "fgerf qsqsk", "mat mat mat mat mat mat mat mat mat mat", "cat", "a cat"]


def save(folder, labels=LABELS, **options):
    """A sequence classifier as the published one is, but tiny and with random weights; reads 8 tokens."""
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)))
    DistilBertTokenizer.from_pretrained(folder).save_pretrained(folder)
    config = DistilBertConfig(
        vocab_size=5 + len(WORDS),
        dim=16,
        hidden_dim=32,
        n_layers=2,
        n_heads=2,
        max_position_embeddings=8,
        initializer_range=1.0,
        id2label=dict(enumerate(labels)),
        label2id={label: row for row, label in enumerate(labels)},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        DistilBertForSequenceClassification(config).save_pretrained(folder, **options)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("detector") / "classifier")


def plain(folder, text):
    """One text alone, in float64, the softmax by hand."""
    model = DistilBertForSequenceClassification.from_pretrained(folder, dtype=torch.float64).eval()
    ids = [WORDS.index(word) + 5 for word in text.split()][:6]
    with torch.no_grad():
        logits = model(torch.tensor([[2, *ids, 3]])).logits[0].tolist()
    return math.exp(logits[1]) / sum(map(math.exp, logits))


def test_the_detector_gives_the_probability_of_clean(folder):
    detector = gibberish_detector(str(folder))
    expected = [plain(folder, text) for text in TEXTS]
    assert max(expected) - min(expected) > 0.1
    for size in (1, 2, 32):  # whatever they are padded with
        assert_close(replace(detector, batch_size=size)(TEXTS), expected, dtype=torch.float32, terms=PASS)
    assert_close(fluency(TEXTS, detector), expected, dtype=torch.float32, terms=PASS)
    assert not detector.model.training


def test_a_classifier_without_the_label_is_refused_with_the_labels_it_has(tmp_path):
    with pytest.raises(
        DetectorError, match="labels are good, bad, noise; give a classifier that has the label 'clean'"
    ):
        gibberish_detector(str(save(tmp_path / "other", ("good", "bad", "noise"))))


def test_a_detector_that_cannot_be_had_is_named(tmp_path, folder):
    with pytest.raises(DetectorError, match=r"nowhere: it cannot be loaded .*Give the folder or the hub id"):
        gibberish_detector(str(tmp_path / "nowhere"))


def test_weights_that_are_no_safetensors_are_refused(tmp_path):
    other = save(tmp_path / "pickled")
    weights = other / "model.safetensors"
    torch.save(
        DistilBertForSequenceClassification.from_pretrained(other).state_dict(), other / "pytorch_model.bin"
    )
    weights.unlink()
    with pytest.raises(DetectorError, match="safetensors"):
        gibberish_detector(str(other))


def test_code_of_a_detector_is_not_run_and_not_asked_about(tmp_path, folder, monkeypatch):
    other = tmp_path / "own-code"
    shutil.copytree(folder, other)
    (other / "config.json").write_text(
        json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}})
    )
    ran = tmp_path / "ran"
    (other / "own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    asked = []

    def yes(prompt=""):
        asked.append(prompt)
        return "y"

    monkeypatch.setattr("builtins.input", yes)
    with pytest.raises(DetectorError, match="own-code: it cannot be loaded"):
        gibberish_detector(str(other))
    assert not asked
    assert not ran.exists()


def test_tofu_has_the_detectors_mean_of_what_was_written(tmp_path, folder):
    sets = {"forget_eval": examples("forget")[:3], "real_authors": examples("real")[:2]}
    options = {"max_new_tokens": 6, "gibberish": str(folder)}
    metrics = evaluate(model(), encoder(), "tofu", sets, tmp_path, options=options)
    rows = pq.ParquetFile(tmp_path / "tofu" / "examples.parquet").read().to_pylist()
    found = gibberish_detector(str(folder), "cpu")([row["generation"] for row in rows[:3]])
    assert metrics["tofu/forget/fluency"] == approx(found.mean(), terms=PASS)
    assert_close([row["fluency"] for row in rows], [*found, nan, nan], dtype=torch.float32, terms=PASS)
    assert not [key for key in metrics if "real_authors" in key and ("fluency" in key or "distinct" in key)]
    again = score_directory("tofu", {"forget": sets["forget_eval"]}, tmp_path, options={"max_new_tokens": 6})
    assert "tofu/forget/fluency" not in again
    assert again.items() <= metrics.items()


def test_a_detector_that_cannot_be_had_costs_nothing_but_its_metric(tmp_path, folder):
    other = shutil.copytree(folder, tmp_path / "damaged")
    (other / "model.safetensors").write_bytes(b"not weights")
    sets = {"forget_eval": examples("forget")[:2], "retain_eval": examples("retain")[:1]}
    plain = evaluate(model(), encoder(), "tofu", sets, tmp_path, options={"max_new_tokens": 6})
    for place in (other, tmp_path / "nowhere"):
        options = {"max_new_tokens": 6, "gibberish": str(place)}
        metrics = evaluate(model(), encoder(), "tofu", sets, tmp_path, options=options)
        assert metrics == approx(plain | {
            "tofu/forget/fluency": nan, "tofu/forget/fluency/missing": 2,
            "tofu/retain/fluency": nan, "tofu/retain/fluency/missing": 1,
        }, terms=PASS)  # fmt: skip
        (problem,) = json.loads((tmp_path / "tofu" / "problems.json").read_text())["problems"]
        assert problem.startswith(
            f"tofu/forget/fluency, tofu/retain/fluency: gibberish detector {place}: it cannot be loaded"
        )


def test_fluency_asks_for_each_distinct_text_once():
    asked = []

    def longer_is_cleaner(texts):
        asked.extend(texts)
        return np.array([len(text) / 10 for text in texts])

    found = fluency(["bb", "", "bb", "c", "bb"], longer_is_cleaner)
    np.testing.assert_array_equal(found, [0.2, 0, 0.2, 0.1, 0.2])
    assert asked == ["bb", "", "c"]
    assert fluency([], longer_is_cleaner).shape == (0,)
    with pytest.raises(ValueError, match=r"shape \(1,\) for 2 texts"):
        fluency(["a", "b"], lambda texts: np.ones(1))


def test_the_metrics_alone_load_nothing_that_is_slow():
    # The checks of a configuration import them, and they are to answer in about a second.
    code = (
        "import sys, eval.metrics.fluency, eval.metrics.text;"
        "print([m for m in ('torch', 'sacrebleu') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_distinct_by_hand():
    # "a b a b a b" has the five pairs ab ba ab ba ab, two distinct; one word, no pair.
    np.testing.assert_array_equal(distinct(["a b a b a b", "a b\n c", "a", ""], n=2), [2 / 5, 1, nan, 0])
    # Seven times "no" are four 4-grams, all the same.
    assert distinct([" ".join(["no"] * 7)]) == 1 / 4
    # A loop without a space is one word: 197 4-grams of its characters, all the same.
    np.testing.assert_array_equal(distinct(["!" * 200, "Ada Lovelace", "  "]), [1 / 197, nan, 0])
    with pytest.raises(ValueError, match="n=0"):
        distinct(["a"], n=0)
