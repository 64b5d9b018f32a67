"""Which metrics a benchmark can give, before anything is measured."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase

from eval.benchmark import find

_ROUGE = ("rouge1_recall", "rouge1_f1", "rougeL_recall", "rougeL_f1")
_OF_SETS: Mapping[str, tuple[str, ...]] = {
    "tofu": (
        *(
            "probability",
            *_ROUGE,
            "truth_ratio",
            "truth_probability",
            "extraction_strength",
            "exact_memorization",
        ),
        *("paraphrased_probability", "extraction_strength_paraphrased", "distinct_4", "fluency"),
    ),
    "lume": (
        "regurgitation",
        "knowledge",
        *(f"task{n}_{kind}" for n in (1, 2, 3) for kind in ("regurgitation", "knowledge")),
    ),
    "copyright": ("rougeL_recall", "bleu", "perplexity"),
    "sampling": ("rougeL_recall", "leakage_at_*", "rougeL_recall_max_at_*"),
}
"""Metrics `<benchmark>/<set>/<metric>`."""
_OTHERS: Mapping[str, tuple[str, ...]] = {
    "tofu": (
        *(
            "tofu/forget_quality",
            "tofu/forget_quality_log10",
            "tofu/forget_quality_ks",
            "tofu/forget_quality_n",
        ),
        *("tofu/forget_quality_retain_n", "tofu/model_utility", "tofu/privleak", "tofu/mia/*"),
    ),
    "muse": (
        *("muse/forget/verbmem", "muse/forget/knowmem", "muse/retain/knowmem", "muse/mia/min_k_auc"),
        "muse/privleak",
    ),
    "lume": ("lume/task_aggregate", "lume/mia/loss_auc", "lume/mia_score", "lume/final"),
    "copyright": ("copyright/forget_quality_gap",),
    "wmdp": ("wmdp/bio/accuracy", "wmdp/cyber/accuracy", "wmdp/chem/accuracy", "mmlu/accuracy"),
    "general": ("general/accuracy", "general/*/*"),
    "prompts": tuple(
        f"prompts/{kind}/*" for kind in ("original", "paraphrased", "prefixed", "opened", "worst")
    ),
}
"""Others, as whole keys or patterns."""


def metrics_of(benchmark: str, has: Collection[str]) -> list[str]:
    """Keys and patterns of what a benchmark can give on a dataset with these sets.

    A benchmark that is not known here may give anything under its name.
    """
    if benchmark not in _OF_SETS and benchmark not in _OTHERS:
        return [f"{benchmark}/*"]
    sets = [name.removesuffix("_eval") for name in find(benchmark).SETS if name in has]
    own = [f"{benchmark}/{name}/{metric}" for name in sets for metric in _OF_SETS.get(benchmark, ())]
    return [*_OTHERS.get(benchmark, ()), *own]


def can_be(key: str, patterns: Iterable[str]) -> bool:
    """Whether a key is one of these, or tells about one (`/missing`, `_low`, `_high`)."""
    plain = key.removesuffix("/missing").removesuffix("_low").removesuffix("_high")
    return any(fnmatchcase(each, pattern) for pattern in patterns for each in (key, plain))
