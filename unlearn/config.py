"""The schema of a run's configuration; unknown keys are refused.

`model`, `dataset`, `method` and `seed` determine the numbers. `hardware` determines how they are computed;
`eval`, `tracker` and the rest what is measured and kept. Descriptions are the help text.
"""

from __future__ import annotations

import math
import os
import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
)

from unlearn.data.templates import unescaped

SLOTS = ("forget", "template", "retain", "full")
"""The data that a term can be on; the first one present sets the epochs. `template`: the questions of the
forget set with alternative answers."""

Slot = Literal["forget", "template", "retain", "full"]
Mask = Literal["answer", "prompt", "attention", "all"]
"""The positions that a term uses: those that predict an answer token, the prompt's tokens, the whole
sequence, or padding too."""


_MIDDLE = {"embedding": {"layer": 0.5}}


Seed = Annotated[int, Field(lt=2**63)]
"""A seed of random numbers: generators take 64 bits."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        super().__pydantic_init_subclass__(**options)
        for name, field in cls.model_fields.items():
            if isinstance(field.default, float) and not math.isfinite(field.default):
                raise TypeError(
                    f"{cls.__name__}.{name}={field.default}: a default is written to config.yaml and must be "
                    "finite; let None stand for no bound"
                )


class PromptConfig(Section):
    """The format of prompts."""

    template: str | None = Field(None, description="plain template with {question}; null: the chat template")
    system: str | None = Field(None, description="system message of the chat template")
    end: str | None = Field(None, description="token that ends an answer; null: the tokenizer's eos")
    variables: dict[str, Any] = Field({}, description="further variables of the chat template")
    date: str = Field("2024-07-26", description="today's date in chat templates that write it")

    @field_validator("template", "system", "end")
    @classmethod
    def _escapes(cls, text: str | None) -> str | None:
        return None if text is None else unescaped(text)

    @field_validator("date", mode="before")
    @classmethod
    def _day(cls, value: Any) -> str:
        """Accept `2024-07-26` and `26 Jul 2024`."""
        for form in ("%Y-%m-%d", "%d %b %Y", "%d %B %Y"):
            try:
                return datetime.strptime(str(value), form).replace(tzinfo=UTC).date().isoformat()
            except ValueError:
                continue
        raise ValueError("write a day as 2024-07-26")


class LoraConfig(Section):
    """Low-rank adapters (PEFT) instead of training all weights."""

    r: NonNegativeInt = Field(0, description="rank; 0 trains the whole model")
    alpha: PositiveInt = Field(16, description="scale: the update is alpha/r times B·A")
    targets: list[str] | Literal["all-linear"] = Field("all-linear", description="module names to adapt")


class NanoConfig(Section):
    """Shape of the Llama that is built when `model.kind` is nano."""

    hidden_size: PositiveInt = Field(128, description="width of the hidden states; a multiple of heads")
    layers: PositiveInt = Field(4, description="number of blocks")
    heads: PositiveInt = Field(4, description="attention heads of a block")
    vocabulary: PositiveInt = Field(1536, description="tokens of the tokenizer that is trained for it")


class ModelConfig(Section):
    """The model to unlearn, and the sources of its target and retain model."""

    name: str = Field(description="a label, used in the name of the run's folder")
    kind: Literal["hf", "gguf", "nano"] = Field(
        "hf", description="hub or folder, pip-packaged GGUF, built by this program"
    )
    path: str | None = Field(
        None, description="hub id or folder, of a model or an adapter; for gguf: the Python package"
    )
    base: str | None = Field(
        None,
        description="if path is an adapter (PEFT), its base model: hub id or folder; null: the one named in "
        "its adapter_config.json",
    )
    revision: str | None = Field(None, description="hub revision (branch, tag, commit)")
    is_target: bool = Field(False, description="path is the target itself, not a base model to train it from")
    retain: str | None = Field(
        None, description="the retain model: hub id or folder; null: published or built"
    )
    retain_log: str | None = Field(
        None,
        description="instead of a retain model, a published log of one: the original TOFU "
        "eval_log_aggregated.json or OpenUnlearning's TOFU_EVAL.json",
    )
    published: dict[str, dict[str, str]] = Field(
        {}, description="hub checkpoints by dataset: {tofu: {target: id, retain90: id}}"
    )
    trust_remote_code: bool = Field(False, description="run code from the model's repository")
    attention: str = Field("sdpa", description="attention implementation of transformers")
    lr_scale: PositiveFloat = Field(
        1.0,
        description="multiplies the learning rate of methods that train the model's own weights (presets are "
        "stated for 1B to 7B models)",
    )
    finetune: dict[str, Any] = Field(
        {}, description="keys of method=finetune for a target or retain model that must be built"
    )
    prompt: PromptConfig = PromptConfig()
    lora: LoraConfig = LoraConfig()
    nano: NanoConfig = NanoConfig()


class DatasetConfig(Section):
    """The data to forget, to retain, and to evaluate on."""

    name: str = Field(description="a label, used in the name of the run's folder")
    source: str = Field(description="the loader: a module of unlearn.data.sources, or a dotted path")
    path: str | None = Field(None, description="hub id, folder or file")
    forget: str | None = Field(None, description="the forget split")
    retain: str | None = Field(None, description="the retain split; null: the one of the forget split")
    full: str | None = Field(None, description="the split that method=finetune trains on")
    holdout: str | None = Field(None, description="examples that no model has seen")
    max_length: PositiveInt = Field(512, description="longest sequence, in tokens; longer ones are cut")
    limit: PositiveInt | None = Field(
        None, description="use only so many examples of each set but `full`, on which targets are trained"
    )
    annotations: str | None = Field(
        None, description="json file of the important spans of forget answers, for weightings that use them"
    )
    options: dict[str, Any] = Field({}, description="further options of the source")


class RuleConfig(Section):
    """The rule that combines the terms' gradients into one update."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = Field("weighted_sum", description="a module of unlearn.rules, or a dotted path")


class SmoothConfig(Section):
    """Smoothness of the forget loss around the weights, with any method: see `unlearn.smoothing`."""

    name: Literal["none", "sam", "random", "penalty", "curvature", "average"] = Field(
        "none", description="how the gradient of the forget terms is made; average: mean of late weights"
    )
    rho: NonNegativeFloat = Field(
        0.01, description="sam: length of the perturbation, over all trained parameters together"
    )
    sigma: NonNegativeFloat = Field(1e-4, description="random: standard deviation of the noise on a weight")
    draws: PositiveInt = Field(3, description="random: gradients that are averaged")
    weight: NonNegativeFloat = Field(
        10.0, description="penalty, curvature: factor of the regulariser, which is added to the forget loss"
    )
    mu: PositiveFloat = Field(0.01, description="penalty, curvature: length of a finite difference")
    start: float = Field(0.8, ge=0, le=1, description="average: share of the steps before the first weights")
    every: PositiveInt = Field(5, description="average: steps between the weights that are averaged")


class FurtherConfig(Section):
    """A further term, on data that already has one."""

    model_config = ConfigDict(extra="allow", frozen=True)
    slot: Slot
    objective: str
    weight: float = 1.0


class AlternativesConfig(Section):
    """The source of alternative answers to a question."""

    source: Literal["refusals", "mismatch", "sampled", "column"] = Field(
        "refusals",
        description="refusals, answers of other questions, answers sampled from the target, a data column",
    )
    path: str | None = Field(
        None, description="your own answers: a text file with one answer per line, json or jsonl"
    )
    count: PositiveInt = Field(5, description="how many per question")
    rows: Literal["one", "all"] = Field(
        "one",
        description="rows of an epoch: each question once, with its alternatives in turn over the epochs, or "
        "once with each of them",
    )
    prompt: str | None = Field(
        None, description="prompt to the target for a sampled answer, with {question} and {answer}"
    )
    temperature: PositiveFloat = Field(1.0, description="of sampling")
    max_new_tokens: PositiveInt = Field(200, description="longest sampled answer")

    @field_validator("prompt")
    @classmethod
    def _escapes(cls, text: str | None) -> str | None:
        return None if text is None else unescaped(text)


class AutoLRConfig(Section):
    """The learning rate from a parabola fitted to losses along the update (GeN); schedule=auto."""

    every: PositiveInt = Field(10, description="probe every so many steps")
    loss: Literal["retain", "forget", "combined"] = Field(
        "retain",
        description="which terms' loss is probed; weights of tokens are those at each probed place, where "
        "the update holds them fixed",
    )
    smooth: float = Field(0.9, ge=0, lt=1, description="share of the old rate that is kept")
    clip: float = Field(2.0, gt=1, description="largest change of the proposed rate, as a factor")
    r2: float = Field(0.99, description="goodness of fit (R²) below which a probe is ignored")
    scale: PositiveFloat = Field(1.0, description="multiplies the proposed rate")
    multipliers: list[float] = Field(
        [-1.0, -0.5, 0.0, 0.5, 1.0],
        description="where the loss is probed, in updates back from the old weights; three always fit",
    )


class UnlearnedConfig(Section):
    """A model that another method unlearns first: the reference, and with noise what training starts from."""

    method: str | None = Field(None, description="a preset of configs/method; null: start from the target")
    keys: dict[str, Any] = Field({}, description="keys of the preset that are changed")
    alpha: float = Field(0.0, ge=0, le=1, description="share by which the weights shrink")
    beta: NonNegativeFloat = Field(
        0.0, description="scale of the Xavier-uniform noise that alpha adds to matrices in their place"
    )


class MethodConfig(Section):
    """An unlearning method: terms, rule and training preset."""

    name: str = Field(description="a label, used in the name of the run's folder")
    source: str = Field("", description="source of the values: paper, section and code")
    start: Literal["target", "base"] = Field("target", description="the model that training starts from")
    forget: dict[str, Any] | None = Field(None, description="objective and its hyper-parameters")
    template: dict[str, Any] | None = Field(None, description="the same, on template answers")
    retain: dict[str, Any] | None = Field(None, description="the same, on the retain set; null: none")
    full: dict[str, Any] | None = Field(None, description="the same, on the split dataset.full")
    forget_weight: float = Field(1.0, description="factor of the forget term in the loss")
    template_weight: float = Field(1.0, description="factor of the template term")
    retain_weight: float = Field(1.0, description="factor of the retain term")
    full_weight: float = Field(1.0, description="factor of the term on dataset.full")
    further: list[FurtherConfig] = Field(
        [], description="more terms: {slot: forget, objective: …, weight: …}"
    )
    alternatives: AlternativesConfig = AlternativesConfig()
    rule: RuleConfig = RuleConfig()
    smooth: SmoothConfig = SmoothConfig()
    intervention: dict[str, Any] | None = Field(
        None,
        description="an intervention on the model's computation: {name: grun, …}; trained instead of the "
        "weights, or fitted",
    )
    reinforced: dict[str, Any] = Field(
        {}, description="keys of method=reinforce, for methods that need the target trained on the forget set"
    )
    unlearned: UnlearnedConfig = UnlearnedConfig()
    train: list[str] | None = Field(
        None,
        description="parameters to train, as name patterns, with model.lora among the adapters; null: all",
    )
    teacher_rate: float = Field(0.999, ge=0, lt=1, description="decay of the mean teacher's running average")
    forget_only: bool = Field(
        False, description="the method is defined without retain data and refuses a retain term"
    )
    update_scale: float = Field(1.0, description="the saved weights are start + scale × what was learned")
    lr: PositiveFloat = Field(1e-5, description="peak learning rate")
    batch: PositiveInt = Field(32, description="global batch: examples per step and group")
    epochs: PositiveFloat = Field(10.0, le=1e6, description="epochs over the first group with a term")
    steps: PositiveInt | None = Field(None, description="optimizer steps; overrides epochs")
    schedule: Literal["linear", "cosine", "constant", "auto"] = Field(
        "linear", description="after the warm-up; auto: from probes, see auto_lr"
    )
    auto_lr: AutoLRConfig = AutoLRConfig()
    warmup_epochs: NonNegativeFloat | None = Field(
        None,
        description="linear warm-up, in epochs; with none of the three one epoch, at most half of the run",
    )
    warmup_steps: NonNegativeInt | None = Field(None, description="the same in optimizer steps")
    warmup_share: float | None = Field(None, ge=0, lt=1, description="the same as a share of all steps")
    weight_decay: NonNegativeFloat = Field(0.01, description="of AdamW")
    betas: tuple[float, float] = Field((0.9, 0.999), description="decay rates of AdamW's two moments")
    clip: NonNegativeFloat | None = Field(
        None,
        description="largest global gradient norm; 0: no clipping; null: 1, or none with a rule whose update "
        "is not clipped",
    )

    @field_validator(*SLOTS, mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        """Expand `retain=kl` to `retain={objective: kl}`, and `retain=none` to no term."""
        if not isinstance(value, str):
            return value
        # Objectives on hidden states need a layer: the middle one, if only a name is set.
        return None if value == "none" else {"objective": value, **_MIDDLE.get(value, {})}

    @property
    def terms(self) -> dict[str, dict[str, Any]]:
        """Terms by slot, for the slots that have one."""
        return {slot: term for slot in SLOTS if (term := getattr(self, slot)) is not None}

    @property
    def sets(self) -> tuple[str, ...]:
        """The training sets of the dataset; the first one sets the epochs."""
        slots = {*self.terms, *(further.slot for further in self.further)}
        return tuple(dict.fromkeys("forget" if s == "template" else s for s in SLOTS if s in slots))

    def rate(self, scale: float) -> float:
        """Return the peak learning rate; `scale` (`model.lr_scale`) applies to the model's own weights."""
        return self.lr * (1.0 if self.intervention else scale)

    @property
    def warmup(self) -> dict[str, float]:
        """The warm-up keys that are set, with their values; at most one may be set."""
        keys = ("warmup_epochs", "warmup_steps", "warmup_share")
        return {key: value for key in keys if (value := getattr(self, key)) is not None}

    @property
    def makes_model(self) -> bool:
        """Whether the method makes a model other than the target."""
        return bool(self.terms or self.further or self.intervention)

    @property
    def alternatives_from_retain(self) -> bool:
        """Whether alternative answers are the answers to retain questions."""
        return self.alternatives.source == "mismatch" and self.alternatives.path is None

    def weight(self, slot: str) -> float:
        return float(getattr(self, f"{slot}_weight"))


class SlurmConfig(Section):
    """Slurm settings for each run of a sweep with `hydra/launcher=slurm`; null: the cluster's default."""

    model_config = ConfigDict(coerce_numbers_to_str=True)  # account=1234

    partition: str | None = Field(None, description="partition; several: a quoted list with commas")
    account: str | None = Field(None, description="account to charge")
    qos: str | None = Field(None, description="quality of service")
    constraint: str | None = Field(None, description="features that nodes must have")
    minutes: PositiveInt = Field(240, description="time limit of a job; a run that needs longer is requeued")
    memory_gb: PositiveInt | None = Field(None, description="memory on each node")
    cpus_per_task: PositiveInt | None = Field(None, description="cores of each task")
    gpus_per_node: NonNegativeInt | None = Field(
        None, description="null: one for each process of a node with device=cuda"
    )
    tasks_per_node: PositiveInt = Field(1, description="tasks among which a node's processes are divided")
    concurrency: PositiveInt = Field(256, description="jobs of one array that may run at the same time")
    warning_s: PositiveInt = Field(
        120, description="seconds before the time limit at which a run gets the signal to checkpoint"
    )
    requeues: NonNegativeInt = Field(10, description="how often a job that ran out of time is requeued")
    name: str = Field("unlearn", description="the job's name in the queue")
    comment: str | None = Field(None, description="comment on the job in the queue")
    setup: list[str] = Field([], description="shell lines before the run: load modules, export variables")
    additional: dict[str, Any] = Field(
        {}, description="further options of sbatch: {mail-type: END, reservation: mine}"
    )


PRECISION = ("dtype", "optimizer", "gradients")
"""Settings of the hardware that change numbers by more than rounding; the fingerprint leaves them out."""


class HardwareConfig(Section):
    """How a run is executed. It changes neither the data order nor the averages."""

    name: str = Field("cpu", description="a label")
    device: Literal["cpu", "cuda"] = Field("cpu", description="where the model is: cpu or cuda")
    nodes: PositiveInt = Field(
        1, description="machines that share the processes: srun --nodes=2 --ntasks-per-node=1 unlearn …"
    )
    processes: PositiveInt = Field(
        1, description="number of data-parallel processes on all nodes; the command starts them"
    )
    threads: PositiveInt | None = Field(
        None, description="CPU threads of each process; null: cores ÷ processes"
    )
    jobs_per_gpu: PositiveInt = Field(
        1, description="with hydra/launcher=joblib: small runs of a sweep that share one GPU"
    )
    micro_tokens: PositiveInt | Literal["auto"] = Field(
        4096,
        description="padded tokens per forward while training; auto: as many as the estimated memory allows",
    )
    micro_batch: PositiveInt | None = Field(
        None, description="sequences per forward and group; must divide the global batch evenly"
    )
    eval_tokens: PositiveInt = Field(
        16384, description="padded tokens per forward while evaluating, without a backward"
    )
    gradient_tokens: PositiveInt | None = Field(
        None,
        description="padded tokens per forward of an evaluation's passes with a backward (gradient norms, "
        "prompt search); null: as micro_tokens, or what the estimate allows where that is auto",
    )
    generate_rows: PositiveInt = Field(128, description="sequences generated together")
    generate_cache: Literal["dynamic", "static"] = Field(
        "dynamic",
        description="cache of keys and values: grows with the text, or has a fixed size to compile for",
    )
    dtype: Literal["fp32", "bf16"] = Field("fp32", description="compute precision; master weights are fp32")
    zero: Literal[0, 1, 2, 3] = Field(0, description="DeepSpeed ZeRO stage")
    offload: bool = Field(False, description="optimizer (and ZeRO-3 parameters) in CPU memory")
    activation_checkpointing: bool | Literal["auto"] = Field(
        False,
        description="recompute activations to save memory; auto: where the estimate does not fit without it",
    )
    optimizer: Literal["adamw", "adamw-8bit"] = Field(
        "adamw",
        description="adamw-8bit: moments in 8 bits (torchao); like dtype, it changes numbers by more than "
        "rounding",
    )
    gradients: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="what a step's gradient is summed in; bf16 needs dtype=bf16, and with zero=0 master "
        "weights are bf16 weights and 16-bit remainders; like dtype, it changes numbers by more than "
        "rounding",
    )
    slurm: SlurmConfig = SlurmConfig()

    @property
    def tokens(self) -> int:
        """`micro_tokens`, after `launch.memory.automatic` has chosen a number for `auto`."""
        if self.micro_tokens == "auto":
            raise ValueError("hardware.micro_tokens=auto has no number yet")
        return self.micro_tokens

    @property
    def backward_tokens(self) -> int:
        """The portion of an evaluation's passes with a backward."""
        return self.gradient_tokens or self.tokens


class JudgementConfig(Section):
    """How the metrics of a run are judged together."""

    closeness: Literal["exponential", "relative"] = Field(
        "exponential",
        description="closeness of a membership AUC to the retain model's: 10^(−|Δ|/0.6), or 1 − |Δ| ÷ the "
        "retain model's, as in UDS (arXiv 2605.24614)",
    )
    aggregate: bool = Field(
        False,
        description="also judged/aggregate: OpenUnlearning's harmonic mean of memorisation, privacy and "
        "utility (arXiv 2506.12618)",
    )


_NUMBER = r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?"
BOUND = re.compile(rf"(?P<sense>>=|<=)\s*(?P<number>{_NUMBER})(?:\s*(?P<of>target|retain))?")
"""At least or at most a number, or a multiple of the target's or the retain model's value."""
FLOOR = re.compile(rf"(?P<number>{_NUMBER})(?:\s*(?P<of>target|retain))?")
"""A number, or a multiple of the target's or the retain model's value."""


class SelectConfig(Section):
    """Choice of the step whose model becomes the run's, by a rule on metrics that are measured on the way."""

    rule: Literal["last", "fixed", "first_below_retain", "best_above_floor", "within"] | None = Field(
        None,
        description="null: the last step, and every example is reported; last; fixed: eval.select.step; "
        "first_below_retain: the first that has forgotten as much as the retain model; best_above_floor: the "
        "most forgetting with a bound on utility; within: the first whose utility is close to the target's",
    )
    metric: str | None = Field(None, description="metric of forgetting: tofu/forget/probability")
    utility: str | None = Field(None, description="metric of utility: tofu/retain/probability")
    floor: float | str | None = Field(
        None,
        description="bound on utility for best_above_floor: a number or, as a multiple of another model's "
        "value, '0.9 target' or '0.95 retain'; the largest value of a metric where lower is better",
    )
    tolerance: PositiveFloat = Field(0.05, description="relative distance from the target, for rule=within")
    step: PositiveInt | None = Field(None, description="the step of rule=fixed")
    on: Literal["selection", "reported"] = Field(
        "selection",
        description="examples that the rule sees: selection, a part of each set that the final evaluation "
        "leaves out; reported, the same examples as the final evaluation",
    )
    share: float = Field(0.25, gt=0, lt=1, description="share of each set that on=selection takes")

    @field_validator("floor")
    @classmethod
    def _readable(cls, floor: float | str | None) -> float | str | None:
        if isinstance(floor, str) and not FLOOR.fullmatch(floor.strip()):
            raise ValueError("write 0.85, '0.9 target' or '0.95 retain'")
        return floor

    @property
    def divides(self) -> bool:
        """Whether the evaluated sets are divided into selection items and reported items."""
        return self.rule is not None and self.on == "selection"


class EvalConfig(Section):
    """Evaluation at the end and, with every_steps, during training; several: eval=[tofu,sampling]."""

    benchmarks: dict[str, dict[str, Any] | None] = Field(
        {},
        description="modules of eval.benchmarks, or dotted paths, with options: {tofu: {mia: false}}",
    )
    variants: dict[str, dict[str, Any] | None] = Field(
        {},
        description="modified copies of the model to evaluate: modules of eval.variants, or dotted paths",
    )
    every_steps: PositiveInt | None = Field(None, description="also evaluate every so many steps")
    max_new_tokens: PositiveInt | None = Field(
        None, description="max_new_tokens of all benchmarks with this option; null: each benchmark's default"
    )
    limit: PositiveInt | None = Field(
        None, description="evaluate only so many examples of each set of the data"
    )
    compare: bool = Field(True, description="also evaluate the target and the retain model (cached)")
    judgement: JudgementConfig = JudgementConfig()
    select: SelectConfig = SelectConfig()


class TrackerConfig(Section):
    """The tracker that mirrors the files of a run. Further keys are options of the tracker."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = Field("wandb", description="a module of launch.tracking.trackers, or a dotted path")
    project: str = Field("unlearn-lab", description="one project per study; an experiment may set it")
    group: str | None = Field(None, description="null: the runs of a sweep share one group")
    tags: list[str] = Field([], description="tags in addition to model, dataset, split and method")
    model: bool = Field(False, description="also upload the unlearned model")


class ProbeConfig(Section):
    """Measurements during training that do not change it. Further keys are options of the probe."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = Field("none", description="a module of unlearn.probes, or a dotted path; none: no probe")
    every: PositiveInt | None = Field(
        None, description="measure every so many steps, before the first and after the last; null: ten times"
    )
    models: list[str] = Field(
        [], description="with method=none: folders of saved models to measure, in order; patterns allowed"
    )
    method: MethodConfig | None = Field(
        None,
        description="with method=none: the method to measure, a name of configs/method or its keys",
    )

    @property
    def on(self) -> bool:
        return self.name != "none"


class GoalConfig(Section):
    """The objective of a sweeper that optimises: a metric of results.json, subject to bounds on others."""

    maximize: str = Field("tofu/forget_quality_log10", description="metric to maximise")
    minimize: str | None = Field(None, description="metric to minimise instead")
    subject_to: dict[str, float | str] = Field(
        {},
        description="bounds by metric: a number is the least share of the target's value; otherwise "
        "'>= 0.5', '<= 0.2' or, as a multiple of another model's value, '<= 1.1 retain', '>= 0.9 target'",
    )

    @field_validator("subject_to", mode="before")
    @classmethod
    def _readable(cls, bounds: Any) -> Any:
        if bounds is None:  # removes a recipe's bounds
            return {}
        for key, bound in bounds.items() if isinstance(bounds, dict) else ():
            if isinstance(bound, str) and not BOUND.fullmatch(bound.strip()):
                raise ValueError(f"{key}: {bound!r} is not a bound; write 0.9, '>= 0.5' or '<= 1.1 retain'")
        return bounds


class CheckpointConfig(Section):
    """Resumable state during training."""

    every_steps: PositiveInt | None = Field(None, description="null: about ten times per run")
    every_minutes: PositiveFloat | None = Field(
        5, description="also after so many minutes since the process started the run; null: never"
    )
    keep: PositiveInt = Field(1, description="number of newest checkpoints to keep")
    models_every: PositiveInt | None = Field(
        None, description="also save the model every so many steps, permanently: models/step-N"
    )


class RunConfig(Section):
    """The configuration of one run."""

    model: ModelConfig
    dataset: DatasetConfig
    method: MethodConfig
    hardware: HardwareConfig = HardwareConfig()
    eval: EvalConfig = EvalConfig()
    probe: ProbeConfig = ProbeConfig()
    tracker: TrackerConfig = TrackerConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    goal: GoalConfig = GoalConfig()
    seed: NonNegativeInt = Field(
        0, lt=2**63, description="of initialisation, data order and everything random"
    )
    root: str = Field("runs", description="folder of all runs and of their shared cache")
    save_model: bool = Field(True, description="keep the unlearned model in the run's folder")
    dry_run: bool = Field(False, description="print the plan and stop")

    @field_validator("root")
    @classmethod
    def _home(cls, root: str) -> str:
        """Expand `~` to the home directory."""
        if not root.strip():
            raise ValueError("name a folder")
        whole = os.path.expanduser(root)
        if whole.startswith("~"):
            raise ValueError("there is no such home directory")
        return whole
