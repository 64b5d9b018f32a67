"""What benchmarks declare of their metrics is whole."""

from __future__ import annotations

import pytest

from eval import benchmark
from eval.benchmark import Better
from eval.metric_catalog import declarations, info, shown


@pytest.mark.parametrize("name", benchmark.BENCHMARKS.names())
def test_every_benchmark_declares_metrics_that_are_shown(name):
    metrics = benchmark.find(name).METRICS
    assert metrics in declarations()
    assert any(one.level is not None for one in metrics.values())
    for key, one in metrics.items():
        assert one.text
        assert one.level is None or one.better is not Better.NEITHER
        assert info(key.replace("*", "x")).declared is not None
        assert key.count("/") in (1, 2)


def test_what_nobody_declares_is_shown_without_an_arrow_and_last():
    keys = ["tofu/model_utility", "mine/accuracy", "tofu/forget/probability"]
    assert shown(keys, 2) == ["tofu/model_utility", "tofu/forget/probability"]
    assert shown(keys) == ["tofu/model_utility", "tofu/forget/probability", "mine/accuracy"]
    assert info("mine/accuracy").direction == ""
