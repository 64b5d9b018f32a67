"""One number on request: OpenUnlearning's by hand, and that of UDS against its 152 published models."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from eval.judgement.aggregate import MEMORISATION, PRIVACY, UTILITY, aggregate_parts
from eval.judgement.judge import judge
from eval.judgement.uds_aggregate import AGGREGATES, uds_aggregates
from eval.metrics.mia import closeness
from tests.eval.eval_fixtures import needs_shared
from tests.paths import SHARED
from unlearn.config import JudgementConfig

OWN = {
    **dict(zip(MEMORISATION, (0.5, 0.6, 0.2, 0.2), strict=True)),
    **dict(zip(PRIVACY, (0.75, 0.5, 0.25, 0.5), strict=True)),
    **dict(zip(UTILITY, (0.3, 0.9), strict=True)),
}
TARGET = dict(zip(UTILITY, (0.6, 0.8), strict=True))
RETAIN = dict.fromkeys(PRIVACY, 0.5)
# memorisation: 4/(1/.5 + 1/.4 + 1/.8 + 1/.8) = 4/7. relative privacy: 1 − .25/.5 = .5 twice, else 1:
# 4/(2 + 1 + 2 + 1) = 2/3. utility: .5 and, of .9/.8, 1: 2/(2 + 1) = 2/3. 3/(7/4 + 3/2 + 3/2) = 3/4.75
RELATIVE = JudgementConfig(closeness="relative", aggregate=True)


def test_the_aggregate_by_hand():
    judged = judge(OWN, TARGET, RETAIN, RELATIVE)
    assert judged.aggregate is not None
    assert judged.aggregate.components == pytest.approx(
        {"memorisation": 4 / 7, "privacy": 2 / 3, "utility": 2 / 3}
    )
    assert judged.metrics["judged/aggregate"] == pytest.approx(3 / 4.75)


def test_the_other_closeness():
    parts = aggregate_parts(OWN, TARGET, RETAIN, "exponential")
    near = 10 ** (-0.25 / 0.6)
    assert parts["privacy"] == pytest.approx(4 / (2 / near + 2))


def test_it_is_off_by_default():
    assert judge(OWN, TARGET, RETAIN).aggregate is None
    assert "judged/aggregate" not in judge(OWN, TARGET, RETAIN).metrics


@pytest.mark.parametrize("key", [*MEMORISATION, *PRIVACY, *UTILITY])
def test_without_one_of_its_metrics_it_is_no_number(key):
    own = {name: value for name, value in OWN.items() if name != key}
    judged = judge(own, TARGET, RETAIN, RELATIVE)
    assert judged.aggregate is not None
    assert math.isnan(judged.aggregate.value)
    assert len(judged.aggregate.missing) == 1


def test_a_wholly_remembered_part_leaves_nothing():
    judged = judge(OWN | {MEMORISATION[0]: 1.0}, TARGET, RETAIN, RELATIVE)
    assert judged.metrics["judged/aggregate"] == 0


def test_the_relative_closeness_by_hand():
    assert closeness(0.75, 0.5, "relative") == pytest.approx(0.5)
    assert closeness(0.2, 0.4, "relative") == pytest.approx(0.5)
    assert closeness(1.0, 0.4, "relative") == 0  # 1.5 away, at most 1
    assert closeness(0.4, 0.4, "relative") == 1
    assert math.isnan(closeness(0.4, 0.0, "relative"))
    assert math.isnan(closeness(math.nan, 0.5, "relative"))
    with pytest.raises(ValueError, match="choose 'exponential' or 'relative'"):
        closeness(0.4, 0.4, "square")  # type: ignore[arg-type]


def test_the_judgement_uses_the_closeness_that_is_chosen():
    relative = judge(OWN, {}, RETAIN, JudgementConfig(closeness="relative")).aspects["privacy"]
    assert sorted(relative.components.values()) == pytest.approx([0.5, 0.5, 1, 1])
    for key, value in (("tofu/privleak", -80.0), ("tofu/mia/reference", 0.9)):
        aspect = judge({key: value}, {}, {}, JudgementConfig(closeness="relative")).aspects["privacy"]
        assert list(aspect.components.values()) == pytest.approx([1 - 0.4 / 0.5])


@needs_shared
def test_the_published_aggregates_and_rankings_follow_from_the_published_columns():
    published = json.loads((SHARED / "data" / "uds" / "method_results.json").read_text(encoding="utf-8"))
    models = published["models"]
    assert len(models) == 152
    ours = [uds_aggregates(each, published["full_utility"][each["epoch"]]) for each in models]
    for name in AGGREGATES:
        theirs = np.array([each[name] for each in models])
        made = np.array([each[name] for each in ours])
        np.testing.assert_allclose(made, theirs, rtol=1e-12, atol=1e-15)
        assert np.array_equal(np.argsort(-made, kind="stable"), np.argsort(-theirs, kind="stable"))
    candidates = [n for n, each in enumerate(models) if not each["is_reference"]]
    best = max(candidates, key=lambda n: ours[n]["overall"])
    assert models[best]["model"] == "altpo_lr5e5_b01_a2_ep10"
    assert ours[best]["overall"] == pytest.approx(0.7726, abs=5e-5)
    assert sum(ours[n]["utility_rel"] >= 0.8 for n in candidates) == 124
