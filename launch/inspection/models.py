"""The model of each run of a plan, before anything is trained: files, prompts, token ids and lengths.

Weights stay unread but for the headers of their files. Texts are tokenised only where they could be too long,
or where the tokenizer has tokens that the model does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from launch.inspection.lengths import Lengths, portions
from launch.inspection.texts import Texts, texts_of
from launch.run.ensure import is_complete
from launch.run.plan import Plan, Planned
from unlearn.config import RunConfig
from unlearn.data.tokenization import DataError, Encoder, Limits
from unlearn.errors import ConfigError
from unlearn.models import load as models
from unlearn.models.adapter_targets import target_problems
from unlearn.models.locate import ModelError, find
from unlearn.models.skeleton import check_weights, limits_of, positions, skeleton


def inspect_models(config: RunConfig, plan: Plan) -> list[str]:
    """Look at the model of each run that is not complete.

    Returns:
        Warnings.

    Raises:
        UserError: a model cannot be used as configured, or not with this data. In a dry run, not where the
            files are elsewhere.
    """
    warnings: dict[str, None] = {}
    for source, runs in _by_source(plan).items():
        try:
            found = _inspect(runs, source)
        except ModelError as error:
            if not config.dry_run or _is_here(config, source):
                raise
            found = [f"the model could not be looked at: {' '.join(str(error).split())}"]
        warnings |= dict.fromkeys(found)
    return list(warnings)


def _by_source(plan: Plan) -> dict[str | None, list[Planned]]:
    """The runs that are not complete by where their weights come from; of what is not made yet, its start."""
    made = {str(run.rundir.model): run.job.start.source for run in plan.runs}
    found: dict[str | None, list[Planned]] = {}
    for run in plan.runs:
        source = run.job.start.source
        while source is not None and source in made:
            source = made[source]
        if not is_complete(run):
            found.setdefault(source, []).append(run)
    return found


def _is_here(config: RunConfig, source: str | None) -> bool:
    place = find(config.model, source)
    return place is None or place.folder is not None or place.package is not None


def _inspect(runs: Sequence[Planned], source: str | None) -> list[str]:
    cfg = runs[-1].job.config.model
    place, warnings = find(cfg, source), []
    limits, most = None, None
    if place is None or place.package is None:
        try:
            model = skeleton(cfg, source)
        except ModelError:
            if not cfg.trust_remote_code:
                raise
        else:
            limits, most = limits_of(model), positions(model.config)
            if place is not None:
                warnings += check_weights(model, place)
            for run in runs:
                _check_adapters(run.job.config, model)
    label = "model.nano" if place is None else place.label
    try:
        return warnings + _inspect_texts(runs, source, limits, most, label)
    except DataError as error:
        raise ModelError(f"{label}: {error}") from error


def _inspect_texts(
    runs: Sequence[Planned], source: str | None, limits: Limits | None, most: int | None, label: str
) -> list[str]:
    cfg, max_length, warnings = runs[-1].job.config.model, runs[-1].job.config.dataset.max_length, []
    tokenizer = models.load_tokenizer(cfg, source)
    encoder = models.make_encoder(cfg, tokenizer, max_length, limits)
    if limits is not None and limits.vocabulary is not None:
        _check_specials(encoder)
    texts = texts_of(runs)
    if texts.prompted():
        warnings += encoder.format.check(tokenizer)
        if encoder.prompts(["What is the name?"])[0][-1:] == [encoder.end_id]:
            warnings.append(
                "the prompt ends with the token that ends answers: check model.prompt.template and "
                "model.prompt.end"
            )
    _check_vocabulary(encoder, texts)
    return warnings + Lengths(encoder, max_length, most, label).check(texts)


def _check_adapters(config: RunConfig, model: Any) -> None:
    """
    Raises:
        UserError: adapters cannot be put where `model.lora` says, or `method.train` names no parameter.
    """
    method, lora = config.method, config.model.lora
    if not method.terms:
        return
    if lora.r and (problems := target_problems(model, lora)):
        raise ConfigError(problems)
    if method.train is not None and not lora.r and method.intervention is None:
        models.train_only(model, method.train)


def _check_specials(encoder: Encoder) -> None:
    """
    Raises:
        DataError: a token that goes with every text is beyond the model's vocabulary.
    """
    rows = encoder.limits.vocabulary
    assert rows is not None
    if encoder.end_id >= rows:
        raise DataError(
            f"the end token: {encoder.beyond_vocabulary(encoder.end_id)}; or set model.prompt.end to another"
        )
    for token in encoder.before:
        if token >= rows:
            raise DataError(encoder.beyond_vocabulary(token))


def _check_vocabulary(encoder: Encoder, texts: Texts) -> None:
    """
    Raises:
        DataError: a text has a token that the model has no embedding for.
    """
    rows = encoder.limits.vocabulary
    if rows is None or max(encoder.tokenizer.get_vocab().values(), default=0) < rows:
        return
    if texts.prompted():
        encoder.prompts(["What is the name?"])
    pairs = [(t.where, part) for t in (*texts.trained, *texts.scored) for part in (t.question, t.answer)]
    pairs += [(a.where, a.question) for a in (*texts.asked, *texts.sampled)]
    where = {text: place for place, text in reversed(pairs) if text}
    for some in portions(where):
        encoded = encoder.tokenizer(some, add_special_tokens=False, verbose=False)["input_ids"]
        for text, ids in zip(some, encoded, strict=True):
            if max(ids, default=0) >= rows:
                raise DataError(f"{where[text]}: {encoder.beyond_vocabulary(max(ids))}")
