"""The recipe's schema; objectives and masks have modules of their own."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipelines.mask_config import AnyMask, NoMask
from pipelines.objective_config import AnyObjective, DPOConfig
from pipelines.section import Section, of_stage
from sparsepo.records import FEATURES


class ModelSection(Section):
    """Locations only: the contents they name are fingerprinted as stage inputs.

    reference: the starting model unless named. positive_scorer, negative_scorer: the two models that tis_dpo weighs tokens
    with. embedder: a sentence-embedding model for rpo; without one, the mean of the reference's last hidden states.
    """

    name_or_path: str = Field(min_length=1)
    reference: str | None = None
    tokenizer: str | None = None
    positive_scorer: str | None = None
    negative_scorer: str | None = None
    embedder: str | None = None


class ColumnNames(Section):
    STAGE = "prepare"
    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    text: str = "text"
    responses: str = "responses"
    scores: str = "scores"
    chosen_score: str | None = None
    rejected_score: str | None = None
    chosen_weights: str | None = None
    rejected_weights: str | None = None


class Source(Section):
    """One data source. `path`: a local or object-store file, directory or glob, or a Hugging Face data set name.

    form: text = prompt/chosen/rejected strings; conversational = message lists; hh = transcripts; scored = candidates
    with scores; chosen_only = prompt/chosen strings; text_only = one text column (for sft).
    weight: expected copies of each training row.
    """

    STAGE = "prepare"
    path: str = Field(min_length=1)
    format: Literal["auto", "jsonl", "parquet", "csv", "huggingface"] = "auto"
    form: Literal["auto", "text", "conversational", "hh", "scored", "chosen_only", "text_only"] = "auto"
    columns: ColumnNames = ColumnNames()
    weight: float = Field(1.0, gt=0, le=100)
    split: str = "train"
    subset: str | None = None
    data_dir: str | None = None


class DataSection(Section):
    STAGE = "prepare"
    sources: tuple[Source, ...] = Field(min_length=1)
    validation: tuple[Source, ...] = ()
    test: tuple[Source, ...] = ()
    validation_fraction: float = Field(0.0, ge=0, lt=1)
    test_fraction: float = Field(0.0, ge=0, lt=1)
    split_seed: int = 0
    max_prompt_tokens: int = Field(512, ge=1)
    max_response_tokens: int = Field(512, ge=1)
    max_tokens: int | None = Field(None, ge=2)
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

    @model_validator(mode="after")
    def _fractions(self) -> "DataSection":
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError(f"validation_fraction + test_fraction = {self.validation_fraction + self.test_fraction}: must be below 1")
        return self


class ReferenceSection(Section):
    """mode: stored = scored once, read from disk; online = the frozen model runs beside training; auto takes the cheaper.

    features: stored beyond what objective and mask need. topk: keep only the k likeliest tokens for the KL, which is then a
    lower bound. layers_dtype: how states of all layers are stored, compute = in the reference's dtype. layout: packed
    shares the prompt between both responses and packs pairs where the model allows it. batch_tokens: tokens per forward,
    padding included. gpus_per_model: GPUs over which one copy is spread. max_failed_fraction: rows that may fail alone.
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
            "scorer_log_ratios",
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
    """Low-rank adapters on the policy through peft; masks stay trainable. target_modules: peft's own choice for the model by default.

    save: adapter = the adapter alone, naming its base; merged = whole weights.
    """

    STAGE = "train"
    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] | None = None
    save: Literal["adapter", "merged"] = "adapter"


class SelectionSection(Section):
    """Which checkpoints are worth keeping, by a metric of the validations.

    keep_best: that many best checkpoints are kept beside the newest ones. patience: validations without improvement after
    which training stops. publish: which weights become RUN/train/model.
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
    """precision: mixed = float32 master weights and bfloat16 compute. strategy: ddp = every worker holds the model; fsdp = sharded (FSDP2).

    layout: packed shares the prompt between both responses and packs pairs where the model allows it. micro_batch_tokens: tokens
    per forward and backward, padding included. auto_microbatch: halve it when memory runs out, and go on from the last
    checkpoint. compile: torch.compile the decoder layers (by default on GPUs). min_workers: go on with so many when workers are lost.
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
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = of_stage(None, ("tensorboard",))
    tracker_project: str = of_stage(None, "sparsepo", min_length=1)
    tracker_group: str | None = of_stage(None, None, min_length=1)

    @model_validator(mode="after")
    def _fits(self) -> "TrainSection":
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers = {self.min_workers}: must be at most num_workers = {self.num_workers}")
        if self.selection.is_active() and self.validate_every is None:
            raise ValueError("selection chooses between validations: set train.validate_every")
        return self


class VaderReward(Section):
    """VADER's compound sentiment in [-1, 1]; no model, no network."""

    STAGE = "evaluate"
    kind: Literal["vader"] = "vader"


class ClassifierReward(Section):
    """Probability of one label under a local sequence classification model."""

    STAGE = "evaluate"
    kind: Literal["classifier"] = "classifier"
    model: str = Field(min_length=1)
    label: str = "POSITIVE"


RewardSection = Annotated[VaderReward | ClassifierReward, Field(discriminator="kind")]


class GenerationSection(Section):
    """engine: transformers everywhere, or vllm where it is installed (through ray.data.llm; other samples, from the same distribution)."""

    STAGE = "evaluate"
    engine: Literal["transformers", "vllm"] = "transformers"
    max_new_tokens: int = Field(48, ge=1)
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)


class RewardModelJudge(Section):
    """A local sequence classification model that scores conversation and reply; the higher score wins, equal ones tie.

    label: whose probability is the score; by default the model's only logit.
    """

    STAGE = "evaluate"
    kind: Literal["reward_model"] = "reward_model"
    model: str = Field(min_length=1)
    label: str | None = None


class OpenAIJudge(Section):
    """Any endpoint that speaks OpenAI's chat completions. Both orders are asked; who changes their mind with the order means a tie.

    base_url: up to and without /chat/completions. api_key_env: environment variable with the key, if the endpoint wants one.
    max_tries: of one question, nonsense answers included. max_failed_fraction: questions that may stay without a verdict.
    """

    STAGE = "evaluate"
    kind: Literal["openai"] = "openai"
    base_url: str = Field(pattern=r"^https?://")
    model: str = Field(min_length=1)
    max_tokens: int = Field(512, ge=1)
    temperature: float = Field(0.0, ge=0)
    api_key_env: str | None = of_stage(None, None)
    timeout_seconds: float = of_stage(None, 60.0, gt=0)
    max_tries: int = of_stage(None, 4, ge=1)
    num_threads: int = of_stage(None, 8, ge=1)
    max_failed_fraction: float = of_stage(None, 0.1, ge=0, le=1)


Judge = Annotated[RewardModelJudge | OpenAIJudge, Field(discriminator="kind")]


class SummarizationSection(Section):
    """Local models for the metrics that need one; those metrics are left out without it.

    bert_score_layer: index into the encoder's hidden states, the last by default.
    """

    STAGE = "evaluate"
    bert_score_model: str | None = None
    bert_score_layer: int | None = Field(None, ge=0)
    entailment_model: str | None = None
    entailment_label: str = "entailment"


class CodeSection(Section):
    """Programs for the tasks of a file in HumanEval's or MBPP's format (JSON lines).

    apply_chat_template: ask for the function in a chat message, for models tuned to answer; otherwise the prompt is continued as it stands.
    k: of pass@k, as far as num_samples reaches. timeout_seconds: wall clock per program. num_runners: programs at once and node.
    """

    STAGE = "evaluate"
    tasks: str = Field(min_length=1)
    max_tasks: int | None = Field(None, ge=1)
    apply_chat_template: bool = False
    num_samples: int = Field(20, ge=1)
    k: tuple[int, ...] = Field((1, 10, 100), min_length=1)
    generation: GenerationSection = GenerationSection(max_new_tokens=256, temperature=0.8, top_p=0.95)
    timeout_seconds: float = Field(10.0, gt=0)
    memory_mib: int = Field(512, ge=64)
    num_runners: int | None = of_stage(None, None, ge=1)


class LeaderboardSection(Section):
    """Tasks of lm-evaluation-harness (the extra `leaderboard`), by name.

    include_path: a directory with task files of one's own. limit: documents per task.
    """

    STAGE = "evaluate"
    tasks: tuple[str, ...] = Field(min_length=1)
    include_path: str | None = of_stage(None, None)
    num_fewshot: int | None = Field(None, ge=0)
    limit: int | None = Field(None, ge=1)
    batch_size: int = Field(16, ge=1)
    apply_chat_template: bool = False


class EvaluateSection(Section):
    """temperatures: of the samples that sentiment, dialogue and summarization look at, the first being the one of unqualified metric names;
    by default generation.temperature alone. sequences_per_batch: sampled together; other numbers draw other samples.
    """

    STAGE = "evaluate"
    benchmarks: tuple[Literal["preference", "sentiment", "masks", "dialogue", "summarization", "code", "leaderboard"], ...] = (
        "preference",
        "sentiment",
        "masks",
    )
    split: Literal["test", "validation"] = "test"
    max_pairs: int | None = Field(None, ge=1)
    num_prompts: int = Field(200, ge=1)
    sequences_per_batch: int = Field(64, ge=1)
    generation: GenerationSection = GenerationSection()
    temperatures: tuple[Annotated[float, Field(ge=0)], ...] = ()
    reward: RewardSection = VaderReward()
    judge: Judge | None = None
    summarization: SummarizationSection = SummarizationSection()
    code: CodeSection | None = None
    leaderboard: LeaderboardSection | None = None
    key_words: str | None = None
    seed: int = 0
    bootstrap_samples: int = Field(2000, ge=100)
    batch_tokens: int = of_stage(None, 8192, ge=1)
    num_actors: int | None = of_stage(None, None, ge=1)

    @model_validator(mode="after")
    def _complete(self) -> "EvaluateSection":
        for benchmark, key in (("dialogue", "judge"), ("code", "code"), ("leaderboard", "leaderboard")):
            if benchmark in self.benchmarks and getattr(self, key) is None:
                raise ValueError(f"benchmarks names {benchmark}: set evaluate.{key}")
        if len(set(self.temperatures)) < len(self.temperatures):
            raise ValueError(f"temperatures = {list(self.temperatures)}: one of them occurs twice")
        return self

    def sampled_benchmarks(self) -> list[str]:
        """Those that look at samples for held-out prompts."""
        return [name for name in ("sentiment", "dialogue", "summarization") if name in self.benchmarks]

    def sampling_temperatures(self) -> tuple[float, ...]:
        return self.temperatures or (self.generation.temperature,)


class SampleSection(Section):
    """Candidates per prompt from `model.name_or_path`, scored, in the scored-candidates form."""

    STAGE = "sample"
    num_candidates: int = Field(8, ge=2)
    max_prompts: int | None = Field(None, ge=1)
    generation: GenerationSection = GenerationSection()
    reward: RewardSection = VaderReward()
    seed: int = 0
    batch_prompts: int = of_stage(None, 64, ge=1)


class Gate(Section):
    """A condition on one number of an evaluation, named <benchmark>/<name> as in its JSON.

    min, max: limits of the value. max_drop, max_rise: how far it may lie below or above the release's (schedule.release).
    """

    metric: str = Field(min_length=1)
    min: float | None = None
    max: float | None = None
    max_drop: float | None = Field(None, ge=0)
    max_rise: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _limits(self) -> "Gate":
        if (self.min, self.max, self.max_drop, self.max_rise) == (None,) * 4:
            raise ValueError(f"the gate on {self.metric} has no limit: set min, max, max_drop or max_rise")
        return self

    def compares(self) -> bool:
        return self.max_drop is not None or self.max_rise is not None


class ScheduleSection(Section):
    """Evaluation of every new checkpoint at certain times.

    cron: five fields as in crontab (minute hour day month weekday). release: a run directory with a finished evaluation, which gates with
    max_drop and max_rise compare with. webhook_env: environment variable with the address that is told of failed gates.
    """

    cron: str | None = None
    timezone: str = "UTC"
    gates: tuple[Gate, ...] = ()
    release: str | None = None
    webhook: str | None = Field(None, pattern=r"^https?://")
    webhook_env: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> "ScheduleSection":
        if self.release is None and any(gate.compares() for gate in self.gates):
            raise ValueError("a gate with max_drop or max_rise compares with a release: set schedule.release to its run directory")
        if self.webhook is not None and self.webhook_env is not None:
            raise ValueError("set webhook or webhook_env, not both")
        return self


class PathsSection(Section):
    """Where shared stage outputs live; by default inside run_dir. Runs that name the same place share the work."""

    pairs: str | None = None
    reference: str | None = None


class RaySection(Section):
    """address: of a running cluster; None starts a local one unless RAY_ADDRESS is set.

    worker_logs: print what workers print; it is in the log files of Ray anyway.
    cpus_per_run, gpus_per_run: what the actors and workers of this run may take, for several runs side by side; a fraction of a GPU
    is for one worker.
    autoscaling: whether machines come on demand, so that missing ones are waited for; by default where the head has no CPUs. scale_up_timeout_s: how long they are waited for.
    """

    address: str | None = None
    num_cpus: int | None = Field(None, ge=1)
    num_gpus: int | None = Field(None, ge=0)
    cpus_per_run: int | None = Field(None, ge=1)
    gpus_per_run: float | None = Field(None, gt=0)
    autoscaling: bool | None = None
    scale_up_timeout_s: int = Field(1200, ge=1)
    temp_dir: str | None = None
    worker_logs: bool = False


class Recipe(Section):
    run_dir: str = Field(min_length=1)
    model: ModelSection
    data: DataSection
    objective: AnyObjective = DPOConfig()
    mask: AnyMask = NoMask()
    reference: ReferenceSection = ReferenceSection()
    train: TrainSection = TrainSection()
    evaluate: EvaluateSection = EvaluateSection()
    sample: SampleSection = SampleSection()
    schedule: ScheduleSection = ScheduleSection()
    paths: PathsSection = PathsSection()
    ray: RaySection = RaySection()

    @model_validator(mode="after")
    def _fits(self) -> "Recipe":
        share = self.ray.gpus_per_run
        if share is not None and share != int(share) and (share > 1 or self.train.num_workers > 1):
            raise ValueError(
                f"ray.gpus_per_run={share} with train.num_workers={self.train.num_workers}: a fraction of one GPU is for one worker"
            )
        name, built = self.objective.name, self.objective.build()
        if self.mask.kind not in built.mask_kinds:
            raise ValueError(f"mask.kind={self.mask.kind} with objective.name={name}: allowed is {' or '.join(sorted(built.mask_kinds))}")
        wanted = self.required_features() | frozenset(self.reference.features)
        if "scorer_log_ratios" in wanted and not (self.model.positive_scorer and self.model.negative_scorer):
            raise ValueError(
                f"objective.name={name} needs the feature scorer_log_ratios of the reference stage: set model.positive_scorer and "
                "model.negative_scorer (models that prefer good and bad responses)"
            )
        if "reference_topk" in wanted and self.reference.topk is None:
            raise ValueError("reference.features names reference_topk: say how many tokens with reference.topk")
        if self.reference.topk is not None and "reference_topk" not in wanted:
            raise ValueError(f"reference.topk={self.reference.topk}: objective.name={name} has no KL to approximate; leave it out")
        if self.reference.layers_dtype == "int8" and ("reference_layers" not in wanted or self.reference.mode == "online"):
            raise ValueError("reference.layers_dtype=int8: no states of all layers are stored; leave it out")
        if self.reference.topk is not None and "reference_hidden" in self.mask.requires():
            raise ValueError(
                f"reference.topk={self.reference.topk} with this mask: its hidden states already give the exact KL; leave reference.topk out"
            )
        if self.train.selection.is_active() and not (self.data.validation or self.data.validation_fraction):
            raise ValueError("train.selection chooses by a validation metric: set data.validation_fraction or data.validation")
        conflict = self.objective.conflict(self.data.min_gap)
        if conflict:
            raise ValueError(conflict)
        return self

    def required_features(self) -> frozenset[str]:
        """Features that objective and mask need together."""
        wanted = self.objective.build().requires | self.mask.requires()
        if self.reference.topk is not None and "reference_hidden" in wanted:
            return wanted - {"reference_hidden"} | {"reference_topk"}
        return wanted

    def reference_mode(self) -> Literal["stored", "online"]:
        """An `auto` that reference_cost.py has not settled is online exactly when the mask reads every layer."""
        if self.reference.mode != "auto":
            return self.reference.mode
        return "online" if "reference_layers" in self.required_features() else "stored"

    def online_features(self) -> frozenset[str]:
        """What the frozen reference computes beside training (empty when it is stored)."""
        if self.reference_mode() == "stored":
            return frozenset()
        return frozenset(name for name in self.required_features() if FEATURES[name].origin == "reference")

    def stored_features(self) -> frozenset[str]:
        """What the reference stage writes for this recipe; scorers and embedder never run beside training."""
        made = frozenset(name for name in self.required_features() if FEATURES[name].stage == "reference")
        return (made - self.online_features()) | frozenset(self.reference.features)
