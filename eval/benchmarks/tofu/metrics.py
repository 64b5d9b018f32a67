"""Declare the metrics of TOFU."""

from __future__ import annotations

from eval.benchmark import Better, Metric, View
from eval.benchmarks.tofu.membership import ATTACKS
from eval.judgement.aspects import (
    closeness_to_half,
    closeness_to_retain,
    of_targets,
    one_minus,
    privleak_closeness,
)


def _further(name: str, better: Better) -> dict[str, Metric]:
    """Return the metrics of a training set that only the report shows."""
    texts = {
        "rougeL_f1": "ROUGE-L F1 of the greedy answer",
        "rouge1_recall": "ROUGE-1 recall of the greedy answer",
        "rouge1_f1": "ROUGE-1 F1 of the greedy answer",
        "extraction_strength_paraphrased": "extraction strength after the question in other words",
    }
    return {f"tofu/{name}/{metric}": Metric(text, better) for metric, text in texts.items()}


def _with_options(name: str) -> dict[str, Metric]:
    """Return the metrics of a set of questions whose answer is one of several options."""
    return {
        f"tofu/{name}/probability": Metric(
            "probability of the true answer among the options", Better.HIGHER, level=5
        ),
        f"tofu/{name}/rougeL_recall": Metric("ROUGE-L recall of the greedy answer", Better.HIGHER, level=5),
        f"tofu/{name}/truth_ratio": Metric(
            "max(0, 1 − R); 1: only the truth is likely", Better.HIGHER, level=5
        ),
        **{key: one for key, one in _further(name, Better.HIGHER).items() if "paraphrased" not in key},
    }


def _attack(score: str, level: int | None = None) -> Metric:
    return Metric(
        f"AUC of a membership attack, forget against holdout: {score}", Better.LIKE_RETAIN, level=level,
        judged=("privacy", closeness_to_retain), optional=True,
    )  # fmt: skip


_FORGET: tuple[View, ...] = ("card", "sweep", "default")
METRICS = {
    "tofu/forget_quality": Metric(
        "p-value that truth ratios are the retain model's (KS test); 1: as if never trained",
        Better.HIGHER, unit="p-value", level=1, views=("forgetting", "sweep", "default"),
    ),
    "tofu/forget_quality_log10": Metric("the same as log10 of the p-value", Better.HIGHER, unit="log10"),
    "tofu/forget_quality_ks": Metric("largest distance of the two distributions", Better.CLOSER_TO_RETAIN),
    "tofu/forget_quality_n": Metric("truth ratios of the model that were compared", unit="examples"),
    "tofu/forget_quality_retain_n": Metric("truth ratios of the retain model", unit="examples"),
    "tofu/model_utility": Metric(
        "harmonic mean of probability, ROUGE-L recall and truth ratio of the three sets to keep",
        Better.HIGHER, level=1, judged=("utility", of_targets), views=("utility", "sweep", "default"),
    ),
    "tofu/privleak": Metric(
        "AUC of Min-K against the retain model's, in percent; −100: all remembered", Better.ZERO,
        unit="percent", level=1, judged=("privacy", privleak_closeness), optional=True,
        replaced_by="mia/min_k",
    ),
    "tofu/forget/probability": Metric(
        "exp of the mean log-probability of the true answer's tokens", Better.FORGOTTEN_IF_LOWER, level=2,
        of_answers=True, views=("forgetting", *_FORGET),
    ),
    "tofu/forget/rougeL_recall": Metric(
        "ROUGE-L recall of the greedy answer", Better.FORGOTTEN_IF_LOWER, level=2, views=_FORGET
    ),
    "tofu/forget/truth_ratio": Metric(
        "min(R, 1/R); 1: the true answer is as likely as wrong ones", Better.FORGOTTEN_IF_HIGHER, level=2,
        views=("sweep",),
    ),
    "tofu/forget/extraction_strength": Metric(
        "longest end of the answer that arg-max decoding completes, as a share", Better.FORGOTTEN_IF_LOWER,
        level=2, of_answers=True, judged=("forget_efficacy", one_minus), views=("changed", *_FORGET),
    ),
    "tofu/forget/exact_memorization": Metric(
        "share of answer tokens that are the arg-max", Better.FORGOTTEN_IF_LOWER, level=3,
        of_answers=True, judged=("forget_efficacy", one_minus),
    ),
    "tofu/forget/paraphrased_probability": Metric(
        "probability of the true answer in other words", Better.FORGOTTEN_IF_LOWER,
        judged=("forget_efficacy", one_minus),
    ),
    "tofu/forget/truth_probability": Metric(
        "the truth's share among true and wrong answers", Better.FORGOTTEN_IF_LOWER,
        judged=("forget_efficacy", one_minus),
    ),
    "tofu/forget/fluency": Metric(
        "P(clean) that a gibberish detector gives to an answer", Better.HIGHER, level=4,
        judged=("utility", of_targets), optional=True,
    ),
    "tofu/forget/distinct_4": Metric(
        "share of distinct 4-grams of the answers; low where a model repeats itself", Better.HIGHER, level=4,
        judged=("utility", of_targets), optional=True, replaced_by="forget/fluency",
    ),
    **_further("forget", Better.FORGOTTEN_IF_LOWER),
    "tofu/retain/probability": Metric(
        "exp of the mean log-probability of the true answer's tokens", Better.HIGHER, level=2,
        of_answers=True, views=("utility", *_FORGET),
    ),
    "tofu/retain/rougeL_recall": Metric(
        "ROUGE-L recall of the greedy answer", Better.HIGHER, level=2, views=("card",)
    ),
    "tofu/retain/truth_ratio": Metric("max(0, 1 − R); 1: only the truth is likely", Better.HIGHER, level=2),
    "tofu/retain/extraction_strength": Metric(
        "longest end of the answer that arg-max decoding completes, as a share", Better.HIGHER, level=2,
        of_answers=True, judged=("utility", of_targets), views=("card", "sweep"),
    ),
    "tofu/retain/exact_memorization": Metric(
        "share of answer tokens that are the arg-max", Better.HIGHER, level=3, of_answers=True
    ),
    "tofu/retain/paraphrased_probability": Metric(
        "probability of the true answer in other words", Better.HIGHER
    ),
    "tofu/retain/truth_probability": Metric("the truth's share among true and wrong answers", Better.HIGHER),
    "tofu/retain/fluency": Metric("P(clean) that a gibberish detector gives to an answer", Better.HIGHER),
    "tofu/retain/distinct_4": Metric("share of distinct 4-grams of the answers", Better.HIGHER),
    **_further("retain", Better.HIGHER),
    **_with_options("real_authors"),
    **_with_options("world_facts"),
    "tofu/holdout/probability": Metric("of what no model saw"),
    "tofu/mia/gradnorm": _attack("norm of an example's gradient"),
    "tofu/mia/loss": _attack("loss"),
    "tofu/mia/min_k": _attack("mean log-probability of the least likely tokens", level=3),
    "tofu/mia/min_k_plus_plus": _attack("the same, standardised by the vocabulary's mean and deviation"),
    "tofu/mia/reference": Metric(
        "AUC of loss minus the retain model's loss", Better.LIKE_RETAIN, optional=True,
        judged=("privacy", closeness_to_half),
    ),
    "tofu/mia/zlib": _attack("loss over the length of the compressed answer"),
    **{f"tofu/mia/{name}_tpr_at_0.01": Metric("members found at 1 % false positives") for name in ATTACKS},
}  # fmt: skip
