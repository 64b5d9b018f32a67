"""The parts of the check on a GPU. Each returns rows: what was measured, by column."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

import torch

from benches.cases import settings
from benches.evaluation import SETS
from benches.geffect import Case
from benches.gpu.bench import Bench, Row, timed, tried
from benches.gpu.models import Operations, Tokens, groups, measure_step, sequences
from benches.presets import as_measured
from eval.collection.live_model import Live
from eval.evaluate import evaluate
from launch.memory.estimate import GIB, estimate, read_shape
from unlearn import probes
from unlearn.config import HardwareConfig, MethodConfig, ProbeConfig
from unlearn.data.sources import available, load_sets
from unlearn.passes.head import unwrap
from unlearn.training.trainer import Trainer

METHODS = ("npo", "satimp", "kl_min", "ngdiff")
WITHIN = 0.15  # how far the estimated memory may be off
AIM = 10.0  # times a backward per example
WARM, LEAST, MOST = 2, 5, 20  # steps


def training(bench: Bench) -> list[Row]:
    """Measure training steps of four methods on short answers."""
    rows = []
    for number, name in enumerate(METHODS):
        seconds = bench.left / (len(METHODS) - number) / 2  # the other half prepares
        rows.append(tried(bench, {"method": name}, partial(_trained, bench, name, seconds)))
    return rows


def memory(bench: Bench) -> list[Row]:
    """Measure training steps on texts of 512 tokens: activations kept, recomputed, and with small moments."""
    half = {"gradients": "bf16"} if bench.hardware().dtype == "bf16" else {}
    cases: dict[str, dict[str, Any]] = {
        "activations kept": {"activation_checkpointing": False},
        "recomputed": {"activation_checkpointing": True},
        "recomputed, AdamW in 8 bits": {"activation_checkpointing": True, "optimizer": "adamw-8bit", **half},
    }
    rows = []
    for title, changes in cases.items():
        measure = partial(_trained, bench, "npo", bench.left / 6, bench.hardware(**changes), long=True)
        rows.append(tried(bench, {"npo with": title}, measure))
    return rows


def geffect(bench: Bench) -> list[Row]:
    """Measure the G-effect's whole measurement, in the midst of a training with NPO."""
    return [tried(bench, {"method": "npo"}, partial(_geffect, bench))]


def evaluation(bench: Bench) -> list[Row]:
    """Evaluate TOFU's suite on the synthetic authors: likelihoods alone, then all of it."""
    shop = bench.shop()
    limit, longest = (4, 4) if bench.small else (64, 64)
    sets = load_sets(shop.data, [name for name in SETS if name in available(shop.data)])
    model = bench.make().eval()

    def run(folder: str, examples: int, **options: Any) -> Row:
        few, tokens = {name: rows[:examples] for name, rows in sets.items()}, Tokens()
        with tokens.of(model):
            seconds, _ = timed(bench, lambda: evaluate(
                model, shop.encoder, "tofu", few, bench.folder / "evaluation" / folder,
                options={"max_new_tokens": longest, **options}, max_tokens=shop.hardware.eval_tokens,
                max_rows_generation=shop.hardware.generate_rows,
            ))  # fmt: skip
        size = {"examples": sum(map(len, few.values())), "tokens": tokens.total}
        return {**size, "seconds": seconds, "tokens/s": tokens.total / seconds}

    run("warm", 2)
    likelihood = partial(run, "likelihood", limit, generation=False, gradients=False)
    rows = [tried(bench, {"metrics": "likelihood"}, likelihood)]
    return [*rows, tried(bench, {"metrics": "all"}, partial(run, "all", limit))]


def generation(bench: Bench) -> list[Row]:
    """Generate from random prompts with both caches; once before, which compiles what is compiled."""
    shop, model = bench.shop(), bench.make().eval()
    rows, longest = (4, 8) if bench.small else (shop.hardware.generate_rows, 128)
    prompts = [s.ids[: s.answer_start].tolist() for s in sequences(bench.model, rows, 2)]

    def run(cache: str) -> Row:
        live = Live(
            model, shop.encoder, bench.folder, max_rows=rows, device=torch.device(bench.device),
            static_cache=cache == "static",
        )  # fmt: skip
        first, _ = timed(bench, lambda: live.answers(prompts, max_new_tokens=longest))
        seconds, answers = timed(bench, lambda: live.answers(prompts, max_new_tokens=longest))
        new = sum(map(len, answers))
        return {
            "rows": rows,
            "new tokens": new,
            "first s": first,
            "seconds": seconds,
            "tokens/s": new / seconds,
        }

    return [tried(bench, {"cache": cache}, partial(run, cache)) for cache in ("dynamic", "static")]


def effects(bench: Bench) -> list[Row]:
    """Compare the effects of one direction on single examples with one backward for each."""
    number = 4 if bench.small else 64

    def run() -> Row:
        case = Case(
            bench.make().eval(), sequences(bench.model, number, 3), bench.device, trained=False, count=1
        )
        seconds, sums = {}, {}
        for name, way in (("ours", case.ours), ("each", case.plain)):
            way()
            seconds[name], products = timed(bench, way)
            sums[name] = torch.stack([each[0].double() for each in products.values()]).sum(0)
        difference = (sums["ours"] - sums["each"]).abs().max() / sums["each"].abs().max()
        ratio = seconds["each"] / seconds["ours"]
        row = {"ours, s": seconds["ours"], "a backward each, s": seconds["each"], "ratio": ratio}
        met = "met" if ratio >= AIM else "missed"
        return row | {"aim": f"≥ {AIM:g} {met}", "largest difference": float(difference)}

    return [tried(bench, {"examples": number}, run)]


def out_of_memory(bench: Bench) -> list[Row]:
    """Lower the allocator's limit until a step does not fit: it should go on in smaller portions."""
    if bench.device != "cuda":
        return [{"skipped": "the limit is of CUDA's allocator"}]

    def run() -> Row:
        card = torch.cuda.get_device_properties(0).total_memory
        hardware = bench.hardware(activation_checkpointing=False)
        with _trainer(bench, "npo", hardware, long=True) as trainer:
            trainer.step()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            trainer.step()
            needed = torch.cuda.max_memory_allocated()
            limit = before + 0.6 * (needed - before)
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(limit / card)
            try:
                seconds, result = timed(bench, trainer.step)
            finally:
                torch.cuda.set_per_process_memory_fraction(1.0)
            portion = trainer.engine.world.limits.portion("micro_tokens", hardware.tokens)
        return {
            "planned tokens": hardware.tokens, "needed GiB": needed / GIB, "limit GiB": limit / GIB,
            "went on with": portion, "seconds": seconds, "loss": result.row["loss"],
        }  # fmt: skip

    return [tried(bench, {"method": "npo"}, run)]


def _trained(
    bench: Bench, name: str, limit: float, hardware: HardwareConfig | None = None, *, long: bool = False
) -> Row:
    """Measure training steps: speed, share of the card's peak, and peak memory against the estimate.

    After `LEAST` steps, no more are made than fit in `limit` seconds.
    """
    hardware = hardware or bench.hardware(name)
    with _trainer(bench, name, hardware, long=long) as trainer:
        for _ in range(WARM):
            trainer.step()
        if bench.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds: list[float] = []
        steps = []
        most = LEAST if bench.small else MOST
        while len(seconds) < LEAST or (len(seconds) < most and sum(seconds) < limit):
            number = trainer.steps_made
            seconds.append(timed(bench, trainer.step)[0])
            portion = trainer.engine.world.limits.portion("micro_tokens", hardware.tokens)
            steps.append(measure_step(trainer, number, portion))
        config = bench.shop(hardware).config(trainer.settings.method)
        largest = max((step.load for step in steps), key=lambda load: (load.tokens, load.answers))
        expected = estimate(read_shape(unwrap(trainer.engine.model)), config, largest).device
    # Steps differ in length: the median is of the time for each token, and for each operation.
    speed = 1 / median(s / step.tokens for s, step in zip(seconds, steps, strict=True))
    rate = 1 / median(s / step.flops for s, step in zip(seconds, steps, strict=True))
    row: Row = {"steps": len(steps), "s/step": median(seconds), "tokens/s": speed, "TFLOP/s": rate / 1e12}
    row |= {"share of peak": rate / bench.peak if bench.peak else None, "estimate GiB": expected / GIB}
    row |= {"tokens of a forward": portion, "peak GiB": None, "peak over estimate": None}
    if bench.device == "cuda":
        peak = torch.cuda.max_memory_allocated()
        off = abs(peak / expected - 1) > WITHIN
        row |= {"peak GiB": peak / GIB, "peak over estimate": peak / expected}
        row["within 15 %"] = "no" if off else "yes"
    return row


def _geffect(bench: Bench) -> Row:
    """Measure the probe's whole measurement, on texts; operations are as they run, not the model's."""
    shop = bench.shop()
    method = as_measured(settings("method", "npo"))
    options = {"examples": 4, "points": 2, "grid": 1} if bench.small else {}
    probe = ProbeConfig(name="geffect", **options)
    trainer = shop.trainer(method)
    try:
        sets = load_sets(shop.data, ("forget", "retain"))
        config = shop.config(method).model_copy(update={"probe": probe})
        made = probes.make(probes.WatchedRun(
            config, trainer.engine, trainer.terms, trainer.data.groups, sets, shop.encoder, bench.folder
        ))  # fmt: skip
        tokens, operations = Tokens(), Operations()
        with tokens.of(trainer.engine.model), operations:
            seconds, _ = timed(bench, lambda: made.measure(trainer.probe_context()))
        if bench.left > seconds:  # counting and the first calls took time
            seconds, _ = timed(bench, lambda: made.measure(trainer.probe_context()))
    finally:
        trainer.engine.close()
    rate = operations.total / seconds
    row: Row = {"seconds": seconds, "tokens/s": tokens.total / seconds, "TFLOP/s": rate / 1e12}
    return row | {"share of peak": rate / bench.peak if bench.peak else None}


@contextmanager
def _trainer(bench: Bench, name: str, hardware: HardwareConfig, *, long: bool = False) -> Iterator[Trainer]:
    method = method_of(bench, name, long=long)
    data = groups(bench.model, 4 * method.batch, long=long)
    trainer = bench.shop(hardware).trainer(method, data)
    try:
        yield trainer
    finally:
        trainer.engine.close()


def method_of(bench: Bench, name: str, *, long: bool = False) -> MethodConfig:
    """Return a preset with the batch of this check: of long texts one full micro-batch."""
    batch = 2 if bench.small else 16 if long else 64
    return as_measured(settings("method", name)).model_copy(update={"batch": batch})


PARTS: dict[str, Callable[[Bench], list[Row]]] = {
    "training": training, "memory": memory, "geffect": geffect, "evaluation": evaluation,
    "generation": generation, "effects": effects, "out_of_memory": out_of_memory,
}  # fmt: skip
