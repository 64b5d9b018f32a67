"""Check the model of each run of a plan before training: files, prompts, token ids and lengths.

Only the headers of weight files are read. Texts are tokenised only if they could be too long, or if the
tokenizer has tokens for which the model has no embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eval.configuration import tokenizer_problems
from launch.inspection.lengths import Lengths, batches
from launch.inspection.texts import Texts, texts_of
from launch.run.complete import is_complete
from launch.run.plan import Plan, Planned
from unlearn.config import RunConfig
from unlearn.data.tokenization import DataError, Encoder, Limits
from unlearn.errors import ConfigError
from unlearn.interventions import is_edited
from unlearn.models import adapt, nano
from unlearn.models.adapter_targets import target_problems
from unlearn.models.locate import ModelError, find, resolve
from unlearn.models.skeleton import check_weights, is_plain_nano, limits_of, positions, skeleton
from unlearn.models.tokenizer import load_tokenizer, make_encoder


def inspect_models(config: RunConfig, plan: Plan) -> list[str]:
    """Check the model of each run that is not complete.

    Returns:
        Warnings. In a dry run they include models whose files are not on this machine.

    Raises:
        UserError: a model cannot be used as configured, or not with this data.
    """
    warnings: dict[str, None] = {}
    for source, runs in _by_source(plan).items():
        try:
            notes = _inspect(runs, source)
        except ModelError as error:
            if not config.dry_run or _is_on_disk(config, source):
                raise
            notes = [f"the model could not be checked: {' '.join(str(error).split())}"]
        warnings |= dict.fromkeys(notes)
    return list(warnings)


def _by_source(plan: Plan) -> dict[str | None, list[Planned]]:
    """Group the incomplete runs by the source of their weights.

    For a source that the plan itself makes, the source of that run counts.
    """
    starts = {str(run.rundir.model): run.job.start.source for run in plan.runs}
    by_source: dict[str | None, list[Planned]] = {}
    for run in plan.runs:
        source = run.job.start.source
        while source is not None and source in starts:
            source = starts[source]
        if not is_complete(run):
            by_source.setdefault(source, []).append(run)
    return by_source


def _is_on_disk(config: RunConfig, source: str | None) -> bool:
    checkpoint = find(config.model, source)
    return checkpoint is None or checkpoint.folder is not None or checkpoint.package is not None


def _inspect(runs: Sequence[Planned], source: str | None) -> list[str]:
    cfg = runs[-1].job.config.model
    checkpoint, warnings = resolve(cfg, source), []
    limits, learned = None, None
    if checkpoint is None and all(is_plain_nano(run.job.config) for run in runs):
        nano.check(cfg.nano)
        limits, learned = Limits(cfg.nano.vocabulary), nano.POSITIONS
    elif checkpoint is None or checkpoint.package is None:
        try:
            model = skeleton(cfg, source)
        except ModelError:
            if not cfg.trust_remote_code:
                raise
        else:
            limits, learned = limits_of(model), positions(model.config)
            if checkpoint is not None:
                warnings += check_weights(model, checkpoint)
                if checkpoint.adapter is not None:
                    warnings += adapt.check_saved(model, checkpoint.adapter)
            edited = checkpoint is not None and checkpoint.folder is not None and is_edited(checkpoint.folder)
            for run in runs:
                _check_adapters(run.job.config, model, edited=edited)
    label = "model.nano" if checkpoint is None else checkpoint.label
    try:
        return warnings + _inspect_texts(runs, source, limits, learned, label)
    except DataError as error:
        raise ModelError(f"{label}: {error}") from error


def _inspect_texts(
    runs: Sequence[Planned], source: str | None, limits: Limits | None, longest: int | None, label: str
) -> list[str]:
    cfg, max_length, warnings = runs[-1].job.config.model, runs[-1].job.config.dataset.max_length, []
    tokenizer = load_tokenizer(cfg, source)
    encoder = make_encoder(cfg, tokenizer, max_length, limits)
    if limits is not None and limits.vocabulary is not None:
        _check_specials(encoder)
    if problems := [text for run in runs for text in tokenizer_problems(run.job.config, tokenizer)]:
        raise ConfigError(list(dict.fromkeys(problems)))
    texts = texts_of(runs)
    if texts.prompted():
        warnings += encoder.format.check(tokenizer)
        if encoder.prompts(["What is the name?"])[0][-1:] == [encoder.end_id]:
            warnings.append(
                "the prompt ends with the token that ends answers: check model.prompt.template and "
                "model.prompt.end"
            )
        closing, ending = encoder.format.after_answer(tokenizer), tokenizer.decode([encoder.end_id])
        if closing is not None and cfg.prompt.end is None and closing != ending:
            warnings.append(
                f"answers end with {ending}, and the chat template closes a turn with {closing}, which a "
                f"chat model expects: set model.prompt.end='{closing}', or to '{ending}' if it is meant"
            )
    _check_vocabulary(encoder, texts)
    return warnings + Lengths(encoder, max_length, longest, label).check(texts)


def _check_adapters(config: RunConfig, model: Any, *, edited: bool) -> None:
    """Check that the model has the modules of `model.lora` and the parameters of `method.train`.

    Raises:
        UserError: a module or parameter is missing, or adapters would be on an `edited` model.
    """
    method, lora = config.method, config.model.lora
    if not method.terms:
        return
    if lora.r and edited:
        edits = (
            "edits of what it computes (method.intervention of an earlier run), which adapters would change"
        )
        raise ConfigError(
            [f"model.lora.r={lora.r}: the model has {edits}; leave it out, or start from another model"]
        )
    if lora.r and (problems := target_problems(model, lora)):
        raise ConfigError(problems)
    if method.train is not None and not lora.r and method.intervention is None:
        adapt.train_only(model, method.train)


def _check_specials(encoder: Encoder) -> None:
    """Check that the model has embeddings for the end token and for the tokens before every text.

    Raises:
        DataError: an embedding is missing.
    """
    rows = encoder.limits.vocabulary
    assert rows is not None
    if encoder.end_id >= rows:
        raise DataError(
            f"the end token: {encoder.beyond_vocabulary(encoder.end_id)}; or choose another model.prompt.end"
        )
    for token in encoder.before:
        if token >= rows:
            raise DataError(encoder.beyond_vocabulary(token))


def _check_vocabulary(encoder: Encoder, texts: Texts) -> None:
    """Check that the model has embeddings for the tokens of all texts.

    Raises:
        DataError: an embedding is missing.
    """
    rows = encoder.limits.vocabulary
    if rows is None or max(encoder.tokenizer.get_vocab().values(), default=0) < rows:
        return
    if texts.prompted():
        encoder.prompts(["What is the name?"])
    pairs = [(t.where, part) for t in (*texts.trained, *texts.scored) for part in (t.question, t.answer)]
    pairs += [(prompt.where, prompt.question) for prompt in (*texts.generated, *texts.sampled)]
    where = {text: label for label, text in reversed(pairs) if text}
    for batch in batches(where):
        encoded = encoder.tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]
        for text, ids in zip(batch, encoded, strict=True):
            if max(ids, default=0) >= rows:
                raise DataError(f"{where[text]}: {encoder.beyond_vocabulary(max(ids))}")
