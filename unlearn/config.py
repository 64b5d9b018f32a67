"""The configuration of a run, typed and closed.

Science (`model`, `dataset`, `method`, `seed`) decides the numbers; `hardware` decides how they are
computed; `eval`, `tracker` and the rest decide what is measured and kept. Descriptions are the help text.
"""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from typing import Any, Literal

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
"""What a method can have a term on; the first one present sets the epochs. `template` are the questions of
the forget set with alternative answers."""

Slot = Literal["forget", "template", "retain", "full"]
Mask = Literal["answer", "attention", "all"]
"""Positions a term looks at: those of the answer tokens, all of the sequence, or padding too."""


_MIDDLE = {"embedding": {"layer": 0.5}}


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class PromptConfig(Section):
    """How a question becomes a prompt."""

    template: str | None = Field(None, description="plain template with {question}; null: the chat template")
    system: str | None = Field(None, description="system message of the chat template")
    end: str | None = Field(None, description="token that ends an answer; null: the tokenizer's eos")
    variables: dict[str, Any] = Field({}, description="further variables of the chat template")
    date: str = Field("2024-07-26", description="the day it is for chat templates that write today's date")

    @field_validator("template", "system", "end")
    @classmethod
    def _escapes(cls, text: str | None) -> str | None:
        return None if text is None else unescaped(text)

    @field_validator("date", mode="before")
    @classmethod
    def _day(cls, given: Any) -> str:
        """Take `2024-07-26` and `26 Jul 2024`."""
        for form in ("%Y-%m-%d", "%d %b %Y", "%d %B %Y"):
            try:
                return datetime.strptime(str(given), form).replace(tzinfo=UTC).date().isoformat()
            except ValueError:
                continue
        raise ValueError("give a day as 2024-07-26")


class LoraConfig(Section):
    """Low-rank adapters (PEFT) instead of training every weight."""

    r: NonNegativeInt = Field(0, description="rank; 0 trains the whole model")
    alpha: PositiveInt = Field(16, description="scale: the update is alpha/r times B·A")
    targets: list[str] | Literal["all-linear"] = Field("all-linear", description="module names to adapt")


class NanoConfig(Section):
    """Shape of the Llama that is built here when `model.kind` is nano."""

    hidden_size: PositiveInt = 128
    layers: PositiveInt = 4
    heads: PositiveInt = 4
    vocabulary: PositiveInt = 1536


class ModelConfig(Section):
    """The model to unlearn, and where its target and retain model come from."""

    name: str = Field(description="for people: names the run's folder")
    kind: Literal["hf", "gguf", "nano"] = Field(
        "hf", description="hub or folder, pip-packaged GGUF, built here"
    )
    path: str | None = Field(None, description="hub id or folder; for gguf: the python package")
    revision: str | None = Field(None, description="hub revision (branch, tag, commit)")
    is_target: bool = Field(False, description="path is the target itself, not a base model to train it from")
    retain: str | None = Field(
        None, description="the retain model: hub id or folder; null: published or built"
    )
    retain_log: str | None = Field(
        None,
        description="in place of a retain model, a published log of one: the original TOFU "
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
        {}, description="keys of method=finetune for a target or retain model that has to be built"
    )
    prompt: PromptConfig = PromptConfig()
    lora: LoraConfig = LoraConfig()
    nano: NanoConfig = NanoConfig()


class DatasetConfig(Section):
    """What to forget, what to keep, and what to evaluate on."""

    name: str = Field(description="for people: names the run's folder")
    source: str = Field(description="the loader: a module of unlearn.data.sources, or a dotted path")
    path: str | None = Field(None, description="hub id, folder or file")
    forget: str | None = Field(None, description="the forget split")
    retain: str | None = Field(None, description="the retain split; null: what belongs to the forget split")
    full: str | None = Field(None, description="the split that method=finetune trains on")
    holdout: str | None = Field(None, description="examples that no model has seen")
    max_length: PositiveInt = Field(512, description="longest sequence, in tokens; longer ones are cut")
    limit: PositiveInt | None = Field(None, description="use only so many examples of each set")
    annotations: str | None = Field(
        None, description="json file of the important spans of forget answers, for weightings that use them"
    )
    options: dict[str, Any] = Field({}, description="further options of the source")


class RuleConfig(Section):
    """How the terms' gradients become one update."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = "weighted_sum"


class FurtherConfig(Section):
    """One more term, on data that has one already."""

    model_config = ConfigDict(extra="allow", frozen=True)
    slot: Slot
    objective: str
    weight: float = 1.0


class AlternativesConfig(Section):
    """Where alternative answers to a question come from."""

    source: Literal["refusals", "mismatch", "sampled", "column"] = Field(
        "refusals",
        description="refusals, answers of other questions, answers sampled from the target, a data column",
    )
    path: str | None = Field(None, description="your own: a text file of one answer a line, json or jsonl")
    count: PositiveInt = Field(5, description="how many per question")
    rows: Literal["one", "all"] = Field(
        "one",
        description="rows of an epoch: each question once, its alternatives in turn from epoch to epoch, or "
        "once with each of them",
    )
    prompt: str | None = Field(
        None, description="what the target is asked for a sampled answer, with {question} and {answer}"
    )
    temperature: PositiveFloat = Field(1.0, description="of sampling")
    max_new_tokens: PositiveInt = Field(200, description="longest sampled answer")

    @field_validator("prompt")
    @classmethod
    def _escapes(cls, text: str | None) -> str | None:
        return None if text is None else unescaped(text)


class AutoLRConfig(Section):
    """The learning rate from a parabola through losses along the update (GeN); schedule=auto."""

    every: PositiveInt = Field(10, description="probe every so many steps")
    loss: Literal["retain", "forget", "combined"] = Field("retain", description="which terms' loss is probed")
    smooth: float = Field(0.9, ge=0, lt=1, description="share of the old rate that is kept")
    clip: float = Field(2.0, gt=1, description="largest change of the proposed rate, as a factor")
    r2: float = Field(0.99, description="goodness of fit below which a probe is not followed")
    scale: PositiveFloat = Field(1.0, description="multiplies the proposed rate")
    multipliers: list[float] = Field(
        [-1.0, -0.5, 0.0, 0.5, 1.0],
        description="where the loss is probed, in updates back from the old weights; three always fit",
    )


class MethodConfig(Section):
    """An unlearning method: terms, rule and training preset."""

    name: str
    source: str = Field("", description="paper, section and code the values come from")
    start: Literal["target", "base"] = Field("target", description="which model training starts from")
    forget: dict[str, Any] | None = Field(None, description="objective and its hyper-parameters")
    template: dict[str, Any] | None = Field(None, description="the same, on template answers")
    retain: dict[str, Any] | None = Field(None, description="the same, on the retain set; null: none")
    full: dict[str, Any] | None = Field(None, description="the same, on the split dataset.full")
    forget_weight: float = 1.0
    template_weight: float = 1.0
    retain_weight: float = 1.0
    full_weight: float = 1.0
    further: list[FurtherConfig] = Field(
        [], description="more terms: {slot: forget, objective: …, weight: …}"
    )
    alternatives: AlternativesConfig = AlternativesConfig()
    rule: RuleConfig = RuleConfig()
    intervention: dict[str, Any] | None = Field(
        None,
        description="an edit of what the model computes: {name: grun, …}; trained in its place, or fitted",
    )
    reinforced: dict[str, Any] = Field(
        {}, description="keys of method=reinforce, for methods that need the target trained on the forget set"
    )
    train: list[str] | None = Field(None, description="parameters to train, as name patterns; null: all")
    teacher_rate: float = Field(0.999, ge=0, lt=1, description="share the mean teacher keeps at each step")
    forget_only: bool = Field(
        False, description="the method is defined without retain data and refuses a retain term"
    )
    update_scale: float = Field(1.0, description="the saved weights are start + scale × what was learned")
    lr: PositiveFloat = Field(1e-5, description="peak learning rate")
    batch: PositiveInt = Field(32, description="global batch: examples per step and group")
    epochs: PositiveFloat = Field(10.0, description="epochs over the first group with a term")
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
    weight_decay: NonNegativeFloat = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    clip: NonNegativeFloat | None = Field(
        None,
        description="largest global gradient norm; 0: no clipping; null: 1, or none with a rule whose update "
        "is not clipped",
    )

    @field_validator(*SLOTS, mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        """`retain=kl` for `retain={objective: kl}`, `retain=none` for no term."""
        if not isinstance(value, str):
            return value
        # Hidden states need a layer: the middle, where a word is all that is said.
        return None if value == "none" else {"objective": value, **_MIDDLE.get(value, {})}

    @property
    def terms(self) -> dict[str, dict[str, Any]]:
        """Slot → term, for the slots that have one."""
        return {slot: term for slot in SLOTS if (term := getattr(self, slot)) is not None}

    @property
    def sets(self) -> tuple[str, ...]:
        """The sets of the dataset that are trained on; the first of them sets the epochs."""
        slots = {*self.terms, *(further.slot for further in self.further)}
        return tuple(dict.fromkeys("forget" if s == "template" else s for s in SLOTS if s in slots))

    def rate(self, scale: float) -> float:
        """The peak learning rate at `model.lr_scale`, which is of the model's own weights alone."""
        return self.lr * (1.0 if self.intervention else scale)

    @property
    def warmup(self) -> dict[str, float]:
        """The keys of the warm-up that are given, with their values; one at most makes sense."""
        keys = ("warmup_epochs", "warmup_steps", "warmup_share")
        return {key: value for key in keys if (value := getattr(self, key)) is not None}

    @property
    def makes_model(self) -> bool:
        """Whether there is anything but the target to evaluate."""
        return bool(self.terms or self.further or self.intervention)

    @property
    def alternatives_from_retain(self) -> bool:
        """Whether alternative answers are those of retain questions."""
        return self.alternatives.source == "mismatch" and self.alternatives.path is None

    def weight(self, slot: str) -> float:
        return float(getattr(self, f"{slot}_weight"))


class SlurmConfig(Section):
    """What `hydra/launcher=slurm` asks Slurm for, for each run of a sweep; null leaves it to the cluster."""

    model_config = ConfigDict(coerce_numbers_to_str=True)  # account=1234

    partition: str | None = Field(None, description="where to queue; several: a list with commas, in quotes")
    account: str | None = Field(None, description="who is charged")
    qos: str | None = Field(None, description="quality of service")
    constraint: str | None = Field(None, description="features that nodes must have")
    minutes: PositiveInt = Field(240, description="time limit of a job; one that needs longer is continued")
    memory_gb: PositiveInt | None = Field(None, description="memory on each node")
    cpus_per_task: PositiveInt | None = None
    gpus_per_node: NonNegativeInt | None = Field(
        None, description="null: one for each process of a node, with device=cuda"
    )
    tasks_per_node: PositiveInt = Field(1, description="tasks that share a node's processes out")
    concurrency: PositiveInt = Field(256, description="jobs of one array that may run at the same time")
    warning_s: PositiveInt = Field(
        120, description="seconds before the time limit at which a run is told to checkpoint"
    )
    requeues: NonNegativeInt = Field(10, description="how often a job that ran out of time is continued")
    name: str = Field("unlearn", description="the job's name in the queue")
    comment: str | None = None
    setup: list[str] = Field([], description="shell lines before the run: load modules, export variables")
    additional: dict[str, Any] = Field(
        {}, description="further options of sbatch: {mail-type: END, reservation: mine}"
    )


class HardwareConfig(Section):
    """How a run is executed. Nothing here changes the data order or what is averaged over what."""

    name: str = "cpu"
    device: Literal["cpu", "cuda"] = "cpu"
    nodes: PositiveInt = Field(
        1, description="machines that share the processes: srun --nodes=2 --ntasks-per-node=1 unlearn …"
    )
    processes: PositiveInt = Field(
        1, description="data-parallel processes on all nodes together, started by the command itself"
    )
    threads: PositiveInt | None = Field(
        None, description="CPU threads of each process; null: cores ÷ processes"
    )
    micro_tokens: PositiveInt = Field(4096, description="padded tokens per forward while training")
    micro_batch: PositiveInt | None = Field(
        None, description="sequences per forward and group; must divide the global batch evenly"
    )
    eval_tokens: PositiveInt = Field(16384, description="padded tokens per forward while evaluating")
    generate_rows: PositiveInt = Field(128, description="sequences generated side by side")
    generate_cache: Literal["dynamic", "static"] = Field(
        "dynamic", description="of keys and values: grows with a text, or has a fixed size to compile for"
    )
    dtype: Literal["fp32", "bf16"] = Field("fp32", description="compute precision; master weights are fp32")
    zero: Literal[0, 1, 2, 3] = Field(0, description="DeepSpeed ZeRO stage")
    offload: bool = Field(False, description="optimizer (and ZeRO-3 parameters) in CPU memory")
    activation_checkpointing: bool = Field(False, description="recompute activations to save memory")
    slurm: SlurmConfig = SlurmConfig()


class EvalConfig(Section):
    """What is measured at the end and, with every_steps, on the way; several: eval=[tofu,sampling]."""

    benchmarks: dict[str, dict[str, Any] | None] = Field(
        {},
        description="modules of eval.benchmarks, or dotted paths, with options: {tofu: {mia: false}}",
    )
    variants: dict[str, dict[str, Any] | None] = Field(
        {},
        description="changed copies to evaluate: modules of eval.variants, or dotted paths, with options",
    )
    every_steps: PositiveInt | None = Field(None, description="also evaluate every so many steps")
    max_new_tokens: PositiveInt | None = Field(
        None, description="max_new_tokens of every benchmark that has this option; null: each one's own"
    )
    limit: PositiveInt | None = Field(
        None, description="evaluate only so many examples of each set of the data"
    )
    compare: bool = Field(True, description="also evaluate the target and the retain model (cached)")


class TrackerConfig(Section):
    """Weights & Biases; the files of the run directory are always written."""

    name: str = "wandb"
    mode: Literal["auto", "online", "offline", "disabled"] = Field(
        "auto", description="auto: online with a key, else offline"
    )
    project: str = Field("unlearn-lab", description="one for each study; an experiment may set it")
    entity: str | None = Field(None, description="user or team; null: the key's own")
    group: str | None = Field(None, description="null: a sweep's runs share one group")
    tags: list[str] = Field([], description="beside model, dataset, split and method")
    model: bool = Field(False, description="also keep the unlearned model in W&B, as an artifact")


class ProbeConfig(Section):
    """What watches the training and changes nothing: the G-effect (arXiv 2502.19301)."""

    name: Literal["none", "geffect"] = "none"
    every: PositiveInt | None = Field(
        None, description="look every so many steps, and before the first and after the last; null: ten times"
    )
    examples: PositiveInt | None = Field(
        32,
        description="gradients are means over so many examples of each set, a fixed sample; null: over all",
    )
    mode: Literal["exact", "running"] = Field(
        "exact",
        description="running: over mini-batches 0.6 of the old mean and 0.4 of the new, as the released code",
    )
    points: NonNegativeInt = Field(8, description="examples of each sample that are looked at one by one")
    tokens: bool = Field(True, description="also by answer token")
    token_layers: bool = Field(False, description="by answer token also for each group of layers")
    grid: NonNegativeInt = Field(
        4, description="which of so many forget examples hurts which of so many retain examples; 0: no grid"
    )
    check: bool = Field(True, description="compare the prediction with the change by one small step")
    step: PositiveFloat = Field(0.1, description="length of that step, in steps of AdamW at the peak rate")
    second_order: bool = Field(False, description="also predict that change to second order")
    trust: float = Field(
        0.9, le=1, description="share of the change that the prediction must explain to be called trusted"
    )
    boundaries: tuple[float, float] = Field(
        (1 / 3, 2 / 3), description="where middle and deep layers begin: shares of the depth, or layers"
    )
    models: list[str] = Field(
        [], description="with method=none: folders of saved models to look at, in order; patterns allowed"
    )
    method: MethodConfig | None = Field(
        None,
        description="with method=none: whose objective is looked at, a name of configs/method or its keys",
    )

    @property
    def on(self) -> bool:
        return self.name != "none"


_NUMBER = r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?"
BOUND = re.compile(rf"(?P<sense>>=|<=)\s*(?P<number>{_NUMBER})(?:\s*(?P<of>target|retain))?")
"""At least or at most a number, or that many times what the target or the retain model has."""


class GoalConfig(Section):
    """What a sweeper that optimises looks for: a number of results.json, subject to others."""

    maximize: str = Field("tofu/forget_quality_log10", description="metric to be as large as it can")
    minimize: str | None = Field(None, description="metric to be as small as it can, instead of that one")
    subject_to: dict[str, float | str] = Field(
        {},
        description="what must hold, by metric: a number is the least share of the target's value; else "
        "'>= 0.5', '<= 0.2' or, times what another model has, '<= 1.1 retain', '>= 0.9 target'",
    )

    @field_validator("subject_to", mode="before")
    @classmethod
    def _readable(cls, bounds: Any) -> Any:
        if bounds is None:  # of a recipe, taken away
            return {}
        for key, bound in bounds.items() if isinstance(bounds, dict) else ():
            if isinstance(bound, str) and not BOUND.fullmatch(bound.strip()):
                raise ValueError(f"{key}: {bound!r} is no bound; write 0.9, '>= 0.5' or '<= 1.1 retain'")
        return bounds


class CheckpointConfig(Section):
    """Resumable state during training."""

    every_steps: PositiveInt | None = Field(None, description="null: about ten times a run")
    every_minutes: PositiveFloat | None = Field(
        5, description="also after so much time since the process began the run; null: none"
    )
    keep: PositiveInt = Field(1, description="how many of the newest to keep")
    models_every: PositiveInt | None = Field(
        None, description="also save the model every so many steps, for good: models/step-N"
    )


class RunConfig(Section):
    """One run."""

    model: ModelConfig
    dataset: DatasetConfig
    method: MethodConfig
    hardware: HardwareConfig = HardwareConfig()
    eval: EvalConfig = EvalConfig()
    probe: ProbeConfig = ProbeConfig()
    tracker: TrackerConfig = TrackerConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    goal: GoalConfig = GoalConfig()
    seed: NonNegativeInt = Field(0, description="of initialisation, data order and everything random")
    root: str = Field("runs", description="folder of all runs and of the cache they share")
    save_model: bool = Field(True, description="keep the unlearned model in the run's folder")
    dry_run: bool = Field(False, description="print the plan and stop")

    @field_validator("root")
    @classmethod
    def _home(cls, root: str) -> str:
        """`~` is the home directory."""
        if not root.strip():
            raise ValueError("name a folder")
        whole = os.path.expanduser(root)
        if whole.startswith("~"):
            raise ValueError("there is no such home directory")
        return whole
