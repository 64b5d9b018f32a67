"""Write docs/metrics.md from what the benchmarks declare: `make docs`."""

from __future__ import annotations

from collections.abc import Mapping

from eval.benchmark import Metric
from eval.metric_catalog import declarations
from launch.config_groups import CONFIGS
from launch.report import markdown

PAGE = CONFIGS.parent / "docs" / "metrics.md"
_HEAD = """\
<!-- Made by `make docs` from the METRICS in eval/benchmarks/ and eval/variants/: edit those. -->
# Metrics

Every metric in `results.json`, in the order in which tables show them. `*` stands for a set, a task or a
number. Next to a key there may be `<key>_low` and `<key>_high` (an interval) and `<key>/missing` (examples
that could not be measured). Keys of a modified copy of the model begin with its variant and, where the
variant makes several models, a label: `relearning/10/…`, `calibrated/…`.

↑ higher is better or more forgotten · ↓ lower is better or more forgotten · → best near the value named ·
"counts in" names the aspect of the judgement (`judged/…`). A metric that a benchmark gives without declaring
it is shown without an arrow.

Further keys say how the numbers came about: `train/loss` and `train/loss/<term>` (at the last step),
`train/steps`, `train/tokens`, `train/memory_gib` (the peak of the main process); `select/step`,
`select/value`, `select/utility` and `select/met` (the step that `eval.select` chose, the rule's metrics
there on the items it chose by, and whether its condition was met; `select/last_value` and
`select/last_utility` are those of the last step); `calibrated/alpha` and `calibrated/retention`,
`quantisation/share`, `<attack>/<steps>/loss`, `<attack>/steps` and `<attack>/examples` (of what the
variant made); `run/seconds` (of the last command that worked on the run, with its evaluation).
"""


def page() -> str:
    """Return the page as Markdown."""
    parts = [_HEAD]
    for metrics in declarations():
        benches = dict.fromkeys(key.partition("/")[0] for key in metrics)
        parts += [f"## {', '.join(benches)}", _table(metrics) + "\n"]
    return "\n".join(parts)


def _table(metrics: Mapping[str, Metric]) -> str:
    rows = [
        [f"`{key}`", one.better.value, one.unit, _aspect(one), markdown.linked(one.text)]
        for key, one in metrics.items()
    ]
    return markdown.table(["key", "direction", "unit", "counts in", "what it is"], rows)


def _aspect(metric: Metric) -> str:
    if metric.attack is not None:
        return "robustness"
    return metric.judged[0].replace("_", " ") if metric.judged is not None else ""
