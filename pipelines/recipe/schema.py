"""The recipe's schema; objectives and masks have modules of their own."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipelines.recipe.discriminator import DiscriminatorSection
from pipelines.recipe.evaluation import EvaluateSection, SampleSection, ScheduleSection
from pipelines.recipe.location import (
    Data,
    Directory,
    Model,
    RunDirectory,
    ScratchDirectory,
    StoreDirectory,
)
from pipelines.recipe.masks import AnyMask, NoMask
from pipelines.recipe.objectives import AnyObjective, DPOConfig, named_objectives
from pipelines.recipe.section import Section, added, of_stage
from sparsepo.features import FEATURES
from sparsepo.objectives.declarations import OBJECTIVES


class ModelSection(Section):
    """Locations only: the contents they name are fingerprinted as stage inputs.

    reference: the starting model unless named. positive_scorer, negative_scorer: models that tokens
    are weighed with; the reference takes the place of one that is left out. embedder: a
    sentence-embedding model for rpo; without one, the mean of the reference's last hidden states.
    name_or_path: the model to tune; the reference too, unless another is named. tokenizer: another
    one than the model's. discriminator: the directory that `sparsepo discriminator` names at its
    end.
    """

    MAIN = "name_or_path"
    name_or_path: Model
    reference: Model | None = None
    tokenizer: Model | None = None
    positive_scorer: Model | None = None
    negative_scorer: Model | None = None
    embedder: Model | None = None
    discriminator: Directory | None = None


class ColumnNames(Section):
    """What the columns of a source are called.

    prompt: what asks, in the forms text, scored and unpaired. instruction: what asks, in the form
    alpaca. input: joined to an instruction, and to any other question if it is set. conversations,
    messages: whole conversations. chosen: the better answer. rejected: the worse one. responses:
    candidates. scores: of the candidates. response, completion: one answer. label: whether it is
    wanted. output: the only answer (alpaca). text: whole texts, for sft. chosen_score,
    rejected_score: how good the answers are; score_chosen, chosen_score, chosen_rating and their
    likes are read without being set, where they are numbers. chosen_weights, rejected_weights: a
    weight per response token, for mask.kind=external. system: a turn before the first. tools:
    descriptions for the chat template.
    """

    STAGE = "prepare"
    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    text: str = "text"
    responses: str = "responses"
    scores: str = "scores"
    response: str = "response"
    completion: str = "completion"
    label: str = "label"
    messages: str = "messages"
    conversations: str = "conversations"
    instruction: str = "instruction"
    input: str = "input"
    output: str = "output"
    chosen_score: str | None = None
    rejected_score: str | None = None
    chosen_weights: str | None = None
    rejected_weights: str | None = None
    system: str = "system"
    tools: str = "tools"


class Source(Section):
    """One data source.

    path: a local or object-store file, directory or glob, or a Hugging Face data set name. format:
    of its files, by default by their names. form: text = prompt/chosen/rejected strings;
    conversational = chosen/rejected messages, with or without a prompt; hh = transcripts; scored =
    candidates with scores; unpaired = prompt/response/ label; alpaca =
    instruction/input/chosen/rejected (or output) as turns; chosen_only = prompt/chosen, or
    messages; text_only = one text column (for sft). weight: expected copies of each training row.
    split: of a Hugging Face data set ("train" by default), or of files whose names say their split;
    "all" for every file. subset: of a Hugging Face data set. data_dir: a folder in the data set or
    directory. transcripts: text = HH transcripts as they stand; messages = their turns, rendered by
    the chat template.
    """

    STAGE, MAIN = "prepare", "path"
    path: Data
    format: Literal["auto", "jsonl", "json", "parquet", "csv", "huggingface"] = "auto"
    form: Literal[
        "auto", "text", "conversational", "hh", "scored", "unpaired", "alpaca", "chosen_only",
        "text_only",
    ] = "auto"  # fmt: skip
    columns: ColumnNames = ColumnNames()
    weight: float = Field(1.0, gt=0, le=100)
    split: str | None = Field(None, min_length=1)
    subset: str | None = None
    data_dir: str | None = None
    transcripts: Literal["text", "messages"] = added("text")


class DataSection(Section):
    """Which rows are read, how they are split, and how long they may be.

    validation_fraction, test_fraction: share of the prompts of `sources` that are held out.
    split_seed: which prompts those are. max_prompt_tokens, max_response_tokens, max_tokens: of a
    prompt, a response, both together. scored_turns: of a conversation, the last answer alone or all
    of them. chat_template: a file, a packaged template (user-assistant), or a name among the
    tokenizer's templates. chat_template_kwargs: what else the template is told. prompt_overflow:
    what becomes of a longer prompt. response_overflow: what becomes of a longer response. min_gap:
    pairs whose scores are closer are dropped. pairing: of scored candidates, the best with the
    worst or each with each that is worse. deduplicate: keep one of equal pairs. max_train_pairs,
    max_validation_pairs, max_test_pairs: of each split, the first ones. shard_pairs: pairs per
    file. rows_per_task: rows that one task reads.
    """

    STAGE, MAIN = "prepare", "sources"
    sources: tuple[Source, ...]
    validation: tuple[Source, ...] = ()
    test: tuple[Source, ...] = ()
    validation_fraction: float = Field(0.0, ge=0, lt=1)
    test_fraction: float = Field(0.0, ge=0, lt=1)
    split_seed: int = 0
    max_prompt_tokens: int = Field(512, ge=1)
    max_response_tokens: int = Field(512, ge=1)
    max_tokens: int | None = Field(None, ge=2)
    scored_turns: Literal["last", "all"] = "last"
    chat_template: Model | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    prompt_overflow: Literal["keep_end", "keep_start", "drop"] = "keep_end"
    response_overflow: Literal["truncate", "drop"] = "truncate"
    min_gap: float = Field(0.0, ge=0)
    pairing: Literal["best_worst", "all"] = "best_worst"
    deduplicate: bool = False
    max_train_pairs: int | None = Field(None, ge=1)
    max_validation_pairs: int | None = Field(None, ge=1)
    max_test_pairs: int | None = Field(None, ge=1)
    shard_pairs: int = Field(1024, ge=1)
    rows_per_task: int = of_stage(None, 2000, ge=1)

    def groups(self) -> dict[str, tuple[Source, ...]]:
        """All sources, by the key that names them."""
        return {"sources": self.sources, "validation": self.validation, "test": self.test}

    @model_validator(mode="after")
    def _fractions(self) -> "DataSection":
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError(
                "validation_fraction + test_fraction = "
                f"{self.validation_fraction + self.test_fraction}: must be below 1"
            )
        return self


class ReferenceSection(Section):
    """How the reference's features are computed, and which are stored.

    mode: stored = scored once, read from disk; online = the frozen model runs beside training; auto
    takes the cheaper. features: stored beyond what objective and mask need. topk: keep only the k
    likeliest tokens for the KL, which is then a lower bound. layers_dtype: how states of all layers
    are stored, compute = in the reference's dtype. layout: packed shares the prompt between both
    responses and packs pairs where the model allows it. batch_tokens: tokens per forward, padding
    included. gpus_per_model: GPUs over which one copy is spread. max_failed_fraction: rows that may
    fail alone. dtype: of the reference's weights. num_actors: copies that score side by side; by
    default one per GPU.
    """

    STAGE = "reference"
    mode: Literal["auto", "stored", "online"] = of_stage(None, "auto")
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    features: tuple[
        Literal[
            "reference_logps",
            "reference_hidden",
            "reference_topk",
            "reference_layers",
            "activation_mask",
            "reference_entropy",
            "reference_square_sum",
            "saliency",
            "token_states",
            "discriminator_values",
            "scorer_log_ratios",
            "positive_logps",
            "negative_logps",
            "prompt_embedding",
        ],
        ...,
    ] = of_stage(None, ())
    topk: int | None = of_stage("train", None, ge=1, le=4096)
    layers_dtype: Literal["compute", "int8"] = of_stage("train", "compute")
    layout: Literal["auto", "packed", "padded"] = of_stage(None, "auto")
    batch_tokens: int | None = of_stage(None, None, ge=1)
    num_actors: int | None = of_stage(None, None, ge=1)
    gpus_per_model: int = of_stage(None, 1, ge=1)
    max_failed_fraction: float = of_stage(None, 0.01, ge=0, le=1)


class LoraSection(Section):
    """Low-rank adapters on the policy through peft; masks stay trainable.

    target_modules: names of layers; peft's own choice for the model by default; all-linear = all
    but the head. use_dora: a trained magnitude beside the direction. use_rslora: scaled by the root
    of the rank. bias: trained beside the adapters. modules_to_save: modules that are trained and
    saved whole. rank_pattern, alpha_pattern: by name of layer, other than rank and alpha. save:
    adapter = the adapter alone, naming its base; merged = whole weights. rank, alpha, dropout:
    peft's.
    """

    STAGE, MAIN = "train", "rank"
    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] | tuple[str, ...] | None = None
    use_dora: bool = False
    use_rslora: bool = False
    bias: Literal["none", "all", "lora_only"] = "none"
    modules_to_save: tuple[str, ...] = ()
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    save: Literal["adapter", "merged"] = "adapter"


class SelectionSection(Section):
    """Which checkpoints are worth keeping, by a metric of the validations.

    keep_best: that many best checkpoints are kept beside the newest ones. patience: validations
    without improvement after which training stops. publish: which weights become RUN/train/model.
    metric: of a validation record. mode: whether less or more is better.
    """

    STAGE = "train"
    metric: str = Field("validation/loss", pattern="^validation/")
    mode: Literal["min", "max"] = "min"
    keep_best: int = of_stage(None, 0, ge=0)
    patience: int | None = Field(None, ge=1)
    publish: Literal["last", "best"] = "last"

    def is_active(self) -> bool:
        return self.keep_best > 0 or self.patience is not None or self.publish == "best"


class TrainSection(Section):
    """How the policy is trained.

    precision: mixed = float32 master weights and bfloat16 compute. strategy: ddp = every worker
    holds the model; fsdp = sharded (FSDP2). layout: packed shares the prompt between both responses
    and packs pairs where the model allows it. micro_batch_tokens: tokens per forward and backward,
    padding included. auto_microbatch: halve it when memory runs out, and go on from the last
    checkpoint. compile: torch.compile the decoder layers (by default on GPUs, where that is to
    pay). min_workers: go on with so many when workers are lost. global_batch_size: pairs per step,
    over all workers. epochs: times that every pair is seen. max_steps: the last step, where it
    comes first. learning_rate: at its highest. weight_decay, adam_betas, adam_eps: AdamW's.
    schedule: of the learning rate after warming up. warmup_fraction: share of the steps in which it
    rises. max_grad_norm: longer gradients are cut to it. dropout: off, or as the model's
    configuration has it. seed: of the order of rows, and of a mask's first parameters.
    validate_every: steps between looks at the validation split. gradient_checkpointing: compute
    activations again instead of keeping them. num_workers: a GPU each where there are GPUs.
    use_gpu: by default where there are any. cpus_per_worker: by default all, shared evenly.
    checkpoint_every: steps. keep_checkpoints: newest ones that stay. max_failures: times that
    workers are started again. trackers: who hears of metrics, beside the files. tracker_project,
    tracker_group: their names there.
    """

    STAGE = "train"
    global_batch_size: int = Field(64, ge=1)
    epochs: float = Field(1.0, gt=0)
    max_steps: int | None = Field(None, ge=1)
    learning_rate: float = Field(1e-6, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    adam_betas: tuple[float, float] = (0.9, 0.999)
    adam_eps: float = Field(1e-8, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_fraction: float = Field(0.1, ge=0, lt=1)
    max_grad_norm: float = Field(1.0, gt=0)
    dropout: Literal["off", "keep"] = "off"
    precision: Literal["auto", "float32", "mixed", "bfloat16"] = "auto"
    lora: LoraSection | None = None
    seed: int = 0
    validate_every: int | None = Field(None, ge=1)
    selection: SelectionSection = SelectionSection()
    strategy: Literal["ddp", "fsdp"] = of_stage(None, "ddp")
    layout: Literal["auto", "packed", "padded"] = of_stage(None, "auto")
    micro_batch_tokens: int | None = of_stage(None, None, ge=1)
    auto_microbatch: bool = of_stage(None, False)
    gradient_checkpointing: bool = of_stage(None, False)
    compile: bool | None = of_stage(None, None)
    num_workers: int = of_stage(None, 1, ge=1)
    min_workers: int | None = of_stage(None, None, ge=1)
    use_gpu: bool | None = of_stage(None, None)
    cpus_per_worker: float | None = of_stage(None, None, gt=0)
    checkpoint_every: int = of_stage(None, 100, ge=1)
    keep_checkpoints: int = of_stage(None, 2, ge=1)
    max_failures: int = of_stage(None, 2, ge=0)
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = of_stage(
        None, ("tensorboard",)
    )
    tracker_project: str = of_stage(None, "sparsepo", min_length=1)
    tracker_group: str | None = of_stage(None, None, min_length=1)

    @model_validator(mode="after")
    def _fits(self) -> "TrainSection":
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(
                f"min_workers = {self.min_workers}: must be at most num_workers = "
                f"{self.num_workers}"
            )
        if self.selection.is_active() and self.validate_every is None:
            raise ValueError("selection chooses between validations: set train.validate_every")
        return self


class ControlSection(Section):
    """Two texts that stand in front of wanted and unwanted responses' prompts (MEET).

    good, bad: the texts. stages: soft trains tokens that begin as the texts' and take their place,
    the model being frozen; model trains the model, these tokens included; both by default.
    soft_learning_rate: of the tokens, at its highest. soft_epochs: times that every response is
    seen meanwhile. soft_max_steps: the last such step, where it comes first.
    """

    good: str = Field(min_length=1)
    bad: str = Field(min_length=1)
    stages: tuple[Literal["soft", "model"], ...] = ("soft", "model")
    soft_learning_rate: float = Field(1e-3, gt=0)
    soft_epochs: float = Field(1.0, gt=0)
    soft_max_steps: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> "ControlSection":
        for name in ("good", "bad"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name} = {getattr(self, name)!r}: must be more than white space")
        if self.good == self.bad:
            raise ValueError(f"good and bad are both {self.good!r}: they must differ")
        if self.stages not in (("soft", "model"), ("soft",), ("model",)):
            raise ValueError(
                f"stages = [{', '.join(self.stages)}]: allowed is [soft, model], [soft] or [model]"
            )
        return self


class SFTSection(Section):
    """What `sparsepo sft` has of its own; of everything else it takes what `train` says.

    A recipe whose objective is sft has `train` and control alone. learning_rate: at its highest.
    epochs: times that every chosen response is seen. max_steps: the last step, where it comes
    first. global_batch_size: responses per step; train's by default. control: tune on rejected
    responses too, told apart by a text in front of the prompt.
    """

    learning_rate: float = Field(1e-5, gt=0)
    epochs: float = Field(1.0, gt=0)
    max_steps: int | None = Field(None, ge=1)
    global_batch_size: int | None = Field(None, ge=1)
    control: ControlSection | None = added(None)


class PathsSection(Section):
    """Where shared stage outputs live; by default inside run_dir.

    Runs that name the same place share the work. pairs: of the prepare stage. reference: of the
    reference stage.
    """

    pairs: StoreDirectory | None = None
    reference: StoreDirectory | None = None


class RaySection(Section):
    """Which Ray a command uses, and how much of it.

    address: of a running cluster; without one a local Ray starts unless RAY_ADDRESS is set.
    worker_logs: print what workers print; it is in the log files of Ray anyway. cpus_per_run,
    gpus_per_run: what the actors and workers of this run may take, for several runs side by side; a
    fraction of a GPU is for one worker. autoscaling: whether machines come with work, so that
    missing ones are waited for; by default where the head has no CPUs. scale_up_timeout_s: how long
    they are waited for. fallback_resource: what only machines of the second choice have: some that
    are missing for fallback_after_s are asked for with it, and in turn without. num_cpus, num_gpus:
    of a local Ray, or of the machine that `plan` plans for; by default this machine's.
    fallback_after_s: seconds of missing them. temp_dir: where a local Ray keeps its files.
    warm_workers: whether workers of a local Ray are forks of one process that has imported what
    they need; else each imports it.
    """

    address: str | None = None
    num_cpus: int | None = Field(None, ge=1)
    num_gpus: int | None = Field(None, ge=0)
    cpus_per_run: int | None = Field(None, ge=1)
    gpus_per_run: float | None = Field(None, gt=0)
    autoscaling: bool | None = None
    scale_up_timeout_s: int = Field(1200, ge=1)
    fallback_resource: str | None = Field("on_demand", min_length=1)
    fallback_after_s: int = Field(180, ge=1)
    temp_dir: ScratchDirectory | None = None
    worker_logs: bool = False
    warm_workers: bool = True


class Recipe(Section):
    """A whole run.

    run_dir: where everything of the run is written, a path or an object store's URI.
    """

    run_dir: RunDirectory
    model: ModelSection
    data: DataSection
    objective: AnyObjective = DPOConfig()
    mask: AnyMask = NoMask()
    reference: ReferenceSection = ReferenceSection()
    train: TrainSection = TrainSection()
    sft: SFTSection = SFTSection()
    discriminator: DiscriminatorSection = DiscriminatorSection()
    evaluate: EvaluateSection = EvaluateSection()
    sample: SampleSection = SampleSection()
    schedule: ScheduleSection = ScheduleSection()
    paths: PathsSection = PathsSection()
    ray: RaySection = RaySection()

    @model_validator(mode="before")
    @classmethod
    def _with_the_objectives_mask(cls, given: Any) -> Any:
        """A recipe that names no mask means its objective's own.

        It never means another objective under this one's name.
        """
        if not isinstance(given, dict):
            return given
        kinds = {
            OBJECTIVES[name].default_mask
            for name in named_objectives(given.get("objective"))
            if name in OBJECTIVES
        } - {"none"}
        mask = given.get("mask") or {}
        if len(kinds) != 1 or not isinstance(mask, dict):
            return given
        return {**given, "mask": {"kind": kinds.pop(), **mask}}

    @model_validator(mode="after")
    def _fits(self) -> "Recipe":
        if not self.data.sources and (
            self.evaluate.model is None or not (self.data.test or self.data.validation)
        ):
            raise ValueError(
                "data.sources = []: name pairs to train on (only evaluate.model, with pairs in "
                "data.test, needs none)"
            )
        share = self.ray.gpus_per_run
        if share is not None and share != int(share) and (share > 1 or self.train.num_workers > 1):
            raise ValueError(
                f"ray.gpus_per_run={share} with train.num_workers={self.train.num_workers}: a "
                "fraction of one GPU is for one worker"
            )
        name, allowed = self.objective.name, self.objective.mask_kinds()
        if self.mask.kind not in allowed:
            raise ValueError(
                f"mask.kind={self.mask.kind} with objective.name={name}: allowed is "
                f"{' or '.join(sorted(allowed))}"
            )
        wanted = self.required_features() | frozenset(self.reference.features)
        if (lacking := _missing_scorer(wanted, self.model)) is not None:
            feature, cure = lacking
            raise ValueError(
                f"{self.reader_of(feature)} needs the feature {feature} of the reference stage: "
                f"set {cure}"
            )
        if self.judges_tokens() and self.model.discriminator is None:
            raise ValueError(
                f"{self.reader_of('discriminator_values')} reads a discriminator's values: set "
                "model.discriminator to the directory that `sparsepo discriminator` names at its "
                "end"
            )
        if "reference_topk" in wanted and self.reference.topk is None:
            raise ValueError(
                "reference.features names reference_topk: say how many tokens with reference.topk"
            )
        if self.reference.topk is not None and "reference_topk" not in wanted:
            raise ValueError(
                f"reference.topk={self.reference.topk}: objective.name={name} has no KL to "
                "approximate; leave it out"
            )
        if self.reference.layers_dtype == "int8" and (
            "reference_layers" not in wanted or self.reference.mode == "online"
        ):
            raise ValueError(
                "reference.layers_dtype=int8: no states of all layers are stored; leave it out"
            )
        if self.reference.topk is not None and "reference_hidden" in self.mask.requires():
            raise ValueError(
                f"reference.topk={self.reference.topk} with this mask: its hidden states already "
                "give the exact KL; leave reference.topk out"
            )
        if self.train.selection.is_active() and not (
            self.data.validation or self.data.validation_fraction
        ):
            raise ValueError(
                "train.selection chooses by a validation metric: set data.validation_fraction or "
                "data.validation"
            )
        if self.train.validate_every is not None and not (
            self.data.validation or self.data.validation_fraction
        ):
            raise ValueError(
                f"train.validate_every = {self.train.validate_every}: there are no validation "
                "pairs; set data.validation_fraction or data.validation, or leave it out"
            )
        own, usual = (
            section.model_dump(exclude={"control"}) for section in (self.sft, SFTSection())
        )
        if self.objective.name == "sft" and own != usual:
            key = next(key for key in own if own[key] != usual[key])
            raise ValueError(
                f"sft.{key} = {own[key]} with objective.name=sft: it is for `sparsepo sft` of a "
                f"preference recipe; set train.{key}"
            )
        conflict = self.objective.mask_conflict(self.mask) or self.objective.conflict(
            self.data.min_gap
        )
        if conflict:
            raise ValueError(conflict)
        return self

    def reader_of(self, feature: str) -> str:
        """The key and value by which the recipe reads a feature, for an error."""
        if feature in self.mask.requires():
            return f"mask.kind={self.mask.kind}"
        if feature in self.objective.requires():
            return f"objective.name={self.objective.name}"
        return "reference.features"

    def without_a_name(self) -> "Recipe":
        """The recipe of the run's own evaluation."""
        evaluate = self.evaluate.model_copy(update={"name": None})
        return self.model_copy(update={"evaluate": evaluate})

    def required_features(self) -> frozenset[str]:
        """Features that objective and mask need together."""
        wanted = self.objective.requires() | self.mask.requires()
        if self.reference.topk is not None and "reference_hidden" in wanted:
            return wanted - {"reference_hidden"} | {"reference_topk"}
        return wanted

    def judges_tokens(self) -> bool:
        """Whether it reads, or stores, what a discriminator finds of tokens."""
        wanted = self.required_features() | frozenset(self.reference.features)
        return "discriminator_values" in wanted

    def reads_labels(self) -> bool:
        """Whether the objective reads responses with labels, each a row, instead of pairs."""
        return "desirable" in self.objective.requires() or self.control() is not None

    def control(self) -> ControlSection | None:
        """The texts in front of this run's own prompts; None of a preference recipe.

        Its section sft is for `sparsepo sft`.
        """
        return self.sft.control if self.objective.name == "sft" else None

    def trains_control(self) -> bool:
        """Whether this run trains the soft tokens of its control and nothing else."""
        control = self.control()
        return control is not None and control.stages == ("soft",)

    def reference_mode(self) -> Literal["stored", "online"]:
        """Whether the reference is stored or online.

        An `auto` that reference/cost.py has not settled is online exactly when the mask reads every
        layer.
        """
        if self.reference.mode != "auto":
            return self.reference.mode
        return "online" if "reference_layers" in self.required_features() else "stored"

    def online_features(self) -> frozenset[str]:
        """What the frozen reference computes beside training (empty when it is stored)."""
        if self.reference_mode() == "stored":
            return frozenset()
        return frozenset(
            name for name in self.required_features() if FEATURES[name].comes_with_a_forward
        )

    def stored_features(self) -> frozenset[str]:
        """What the reference stage writes for this recipe.

        Scorers and embedder never run beside training, nor does the reference's backward.
        """
        made = frozenset(
            name for name in self.required_features() if FEATURES[name].of_frozen_model
        )
        return (made - self.online_features()) | frozenset(self.reference.features)


# Feature of the scorers -> keys of the model section of which one at least brings it, and what to
# set.
_SCORERS = {
    "positive_logps": (("positive_scorer",), "a model that prefers good responses"),
    "negative_logps": (("negative_scorer",), "a model that prefers bad responses"),
    "scorer_log_ratios": (
        ("positive_scorer", "negative_scorer"),
        "models that prefer good and bad responses; the reference takes the place of one that is "
        "left out",
    ),
}


def _missing_scorer(wanted: frozenset[str], model: ModelSection) -> tuple[str, str] | None:
    """The first feature whose scorer the recipe does not name, and the key that brings it."""
    for feature, (keys, meaning) in _SCORERS.items():
        if feature in wanted and not any(getattr(model, key) for key in keys):
            named = " or ".join(f"model.{key}" for key in keys)
            return feature, f"{named} ({meaning})"
    return None
