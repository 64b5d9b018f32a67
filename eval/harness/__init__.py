"""Run EleutherAI's lm-evaluation-harness as a library on the loaded model.

The harness chooses requests and scores them; `Live` computes. Its own distributed mode is not used: every
process runs the whole harness on the same requests, and `Live` divides the passes.
"""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from eval.harness.lookup import HarnessError, Names, check_counts, manager, problems, task_files
from eval.harness.outcome import Outcome, outcome

if TYPE_CHECKING:
    from eval.collection.live_model import Live
    from unlearn.distributed import World

__all__ = ["HarnessError", "Names", "Outcome", "check_counts", "problems", "run_tasks", "task_files"]

_log = logging.getLogger(__name__)
_SEED = 1234  # the harness's default for few-shot examples, used for its published numbers
T = TypeVar("T")


def run_tasks(
    live: Live,
    tasks: Sequence[str],
    *,
    fewshot: int | None = None,
    limit: int | None = None,
    include_path: str | None = None,
    chat_template: bool = False,
) -> Outcome:
    """Run tasks, groups or tags of the harness on the model; a collective with the same result on all.

    `fewshot` replaces a task's number of few-shot examples, except where the task requires none. `limit` is
    the number of examples of each task, the first ones. Task files under `include_path` take precedence over
    the library's.

    Raises:
        HarnessError: a task is unknown, cannot be loaded, or needs something that is not supported.
    """
    from lm_eval.evaluator import evaluate  # seconds of imports that only these benchmarks need

    from eval.harness.model import LiveLM

    model = LiveLM(live)
    if chat_template and model.tokenizer.chat_template is None:
        raise HarnessError("chat_template=true: this model's tokenizer has no chat template; set it to false")
    with _seeded(), _without_bars():
        loaded = _on_all(live.world, lambda: _load(model, tasks, fewshot, include_path), tasks)
        results = evaluate(
            lm=model,
            task_dict=loaded,
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=chat_template,
            fewshot_as_multiturn=chat_template,
            system_instruction=live.encoder.format.system if chat_template else None,
        )
    for name in loaded["tasks"]:
        _log.info(
            "%s: version %s of the task, %s examples in the prompt, %s scored",
            name, results["versions"][name], results["n-shot"][name],
            results["n-samples"][name]["effective"],
        )  # fmt: skip
    return outcome(results, tasks, model.problems())


def _load(model: Any, tasks: Sequence[str], fewshot: int | None, include_path: str | None) -> Any:
    loaded = manager(tasks, include_path).load(list(tasks))
    for name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            raise HarnessError(f"task {name} runs generated code or needs more than text: leave it out")
        default = task.get_config("num_fewshot")
        if default is None or (fewshot is not None and default != 0):
            task.set_config(key="num_fewshot", value=fewshot or 0)
        task.set_fewshot_seed(seed=_SEED)
        task.aggregation = partial(_without_overflow, task.aggregation)
        if task.OUTPUT_TYPE == "generate_until":
            model.generation(task.config.generation_kwargs, name)  # fails before hours of other tasks
    return loaded


def _without_overflow(aggregation: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the largest float for a perplexity that overflows one, as a collapsed model's can.

    Infinity would be null in JSON, and so not measured where it is read again.
    """

    def total(function: Callable[[Any], Any], values: Any) -> Any:
        try:
            return function(values)
        except OverflowError:
            return sys.float_info.max

    return {name: partial(total, function) for name, function in aggregation().items()}


def _on_all(world: World, load: Callable[[], T], tasks: Sequence[str]) -> T:
    """Call `load` on every process; if it fails on one it fails on all, so that none waits for another."""
    loaded: T | None = None
    failure: Exception | None = None
    try:
        loaded = load()
    except Exception as error:  # the library raises anything from KeyError to HTTP errors
        failure = error
    failures = world.gather([] if failure is None else [f"{type(failure).__name__}: {failure}"])
    if isinstance(failure, HarnessError):
        raise failure
    if failures:
        raise HarnessError(
            f"lm_eval cannot load the tasks ({', '.join(tasks)}): {failures[0]}; start again where the hub "
            "can be reached (their data are cached afterwards), or choose other tasks"
        ) from failure
    assert loaded is not None
    return loaded


@contextmanager
def _seeded() -> Iterator[None]:
    """Seed the global random generators, which some tasks use to shuffle choices; restore them afterwards."""
    import torch

    states = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(_SEED)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(_SEED)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextmanager
def _without_bars() -> Iterator[None]:
    """Hide the progress bars for reading data and building prompts, which no argument turns off."""
    import datasets
    import lm_eval.api.task as module

    before, shown = module.tqdm, not datasets.are_progress_bars_disabled()
    bar: Any = partial(before, disable=True)
    module.tqdm = bar
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        module.tqdm = before
        if shown:
            datasets.enable_progress_bars()
