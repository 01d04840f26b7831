"""The recipe's schema. Every field says, by its section or itself, whose stage's result it changes.

`stage_settings` reads that declaration; fingerprints, skipping and the refusal of a changed field derive from it alone.
A field of stage None (workers, budgets, logging, locations) never invalidates anything.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sparsepo.masks import ACTIVATION_MAPPINGS, LEARNED_MASKS
from sparsepo.objectives import DPO, SFT, TDPO1, MaPO, Objective, SparsePO

Stage = Literal["prepare", "reference", "train", "evaluate", "sample"]


def of_stage(stage: Stage | None, default: Any = ..., **constraints: Any) -> Any:
    """A field that changes the result of `stage` (None: of no stage) instead of its section's."""
    return Field(default, json_schema_extra={"stage": stage}, **constraints)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True, frozen=True)
    STAGE: ClassVar[Stage | None] = None


class ModelSection(Section):
    """Locations only: the contents they name are fingerprinted as stage inputs."""

    name_or_path: str = Field(min_length=1)
    reference: str | None = None
    tokenizer: str | None = None


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


class DPOSection(Section):
    STAGE = "train"
    name: Literal["dpo"] = "dpo"
    beta: float = Field(0.1, gt=0)
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)

    def build(self) -> Objective:
        return DPO(self.beta, self.label_smoothing)


class TDPO1Section(Section):
    STAGE = "train"
    name: Literal["tdpo1"] = "tdpo1"
    beta: float = Field(0.1, gt=0)

    def build(self) -> Objective:
        return TDPO1(self.beta)


class MaPOSection(Section):
    STAGE = "train"
    name: Literal["mapo"] = "mapo"
    beta: float = Field(0.1, gt=0)

    def build(self) -> Objective:
        return MaPO(self.beta)


class SparsePOSection(Section):
    STAGE = "train"
    name: Literal["sparsepo"] = "sparsepo"
    beta: float = Field(0.1, gt=0)
    l1_reward: float = Field(0.0, ge=0)
    l1_kl: float = Field(0.0, ge=0)

    def build(self) -> Objective:
        return SparsePO(self.beta, self.l1_reward, self.l1_kl)


class SFTSection(Section):
    STAGE = "train"
    name: Literal["sft"] = "sft"

    def build(self) -> Objective:
        return SFT()


ObjectiveSection = Annotated[DPOSection | TDPO1Section | MaPOSection | SparsePOSection | SFTSection, Field(discriminator="name")]


class NoMask(Section):
    STAGE = "train"
    kind: Literal["none"] = "none"


class ActivationMaskSection(Section):
    STAGE = "reference"
    kind: Literal["activation"] = "activation"
    hooks: str | tuple[str, ...] = "all"
    mapping: Literal["zn_rescale", "sigmoid", "none"] = ACTIVATION_MAPPINGS[0]


class LearnedMaskSection(Section):
    STAGE = "train"
    kind: Literal["learned"] = "learned"
    architecture: Literal["simple_last", "simple_all"] = "simple_all"
    sharing: Literal["common", "independent"] = "common"
    terms: Literal["both", "reward", "kl"] = "both"
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    # While the policy still is the reference, a mask's gradient is rounding noise of about 1e-7, which Adam's usual
    # epsilon would turn into full steps.
    adam_eps: float = Field(1e-6, gt=0)


MaskSection = Annotated[NoMask | ActivationMaskSection | LearnedMaskSection, Field(discriminator="kind")]


class ReferenceSection(Section):
    """mode: stored = scored once, read from disk; online = the frozen model runs beside training; auto chooses."""

    STAGE = "reference"
    mode: Literal["auto", "stored", "online"] = of_stage(None, "auto")
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    features: tuple[Literal["reference_logps", "reference_hidden", "reference_layers", "activation_mask"], ...] = of_stage(None, ())
    batch_tokens: int = of_stage(None, 8192, ge=1)
    num_actors: int | None = of_stage(None, None, ge=1)


class TrainSection(Section):
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
    seed: int = 0
    validate_every: int | None = Field(None, ge=1)
    num_workers: int = of_stage(None, 1, ge=1)
    use_gpu: bool | None = of_stage(None, None)
    cpus_per_worker: float | None = of_stage(None, None, gt=0)
    micro_batch_tokens: int = of_stage(None, 8192, ge=1)
    checkpoint_every: int = of_stage(None, 100, ge=1)
    keep_checkpoints: int = of_stage(None, 2, ge=1)
    max_failures: int = of_stage(None, 2, ge=0)


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
    STAGE = "evaluate"
    max_new_tokens: int = Field(48, ge=1)
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)


class EvaluateSection(Section):
    STAGE = "evaluate"
    benchmarks: tuple[Literal["preference", "sentiment", "masks"], ...] = ("preference", "sentiment", "masks")
    split: Literal["test", "validation"] = "test"
    max_pairs: int | None = Field(None, ge=1)
    num_prompts: int = Field(200, ge=1)
    generation: GenerationSection = GenerationSection()
    reward: RewardSection = VaderReward()
    key_words: str | None = None
    seed: int = 0
    bootstrap_samples: int = Field(2000, ge=100)
    batch_tokens: int = of_stage(None, 8192, ge=1)
    num_actors: int | None = of_stage(None, None, ge=1)


class SampleSection(Section):
    """Candidates per prompt from `model.name_or_path`, scored, in the scored-candidates form."""

    STAGE = "sample"
    num_candidates: int = Field(8, ge=2)
    max_prompts: int | None = Field(None, ge=1)
    generation: GenerationSection = GenerationSection()
    reward: RewardSection = VaderReward()
    seed: int = 0
    batch_prompts: int = of_stage(None, 64, ge=1)


class PathsSection(Section):
    """Where shared stage outputs live; by default inside run_dir. Runs that name the same place share the work."""

    pairs: str | None = None
    reference: str | None = None


class RaySection(Section):
    """address: of a running cluster; None starts a local one unless RAY_ADDRESS is set.

    worker_logs: print what workers print; it is in the log files of Ray anyway.
    cpus_per_run: CPUs that the actors and workers of this run may take, for several runs side by side.
    """

    address: str | None = None
    num_cpus: int | None = Field(None, ge=1)
    num_gpus: int | None = Field(None, ge=0)
    cpus_per_run: int | None = Field(None, ge=1)
    temp_dir: str | None = None
    worker_logs: bool = False


class Recipe(Section):
    run_dir: str = Field(min_length=1)
    model: ModelSection
    data: DataSection
    objective: ObjectiveSection = DPOSection()
    mask: MaskSection = NoMask()
    reference: ReferenceSection = ReferenceSection()
    train: TrainSection = TrainSection()
    evaluate: EvaluateSection = EvaluateSection()
    sample: SampleSection = SampleSection()
    paths: PathsSection = PathsSection()
    ray: RaySection = RaySection()

    @model_validator(mode="after")
    def _fits(self) -> "Recipe":
        allowed = {"sparsepo": ("learned",), "mapo": ("activation", "none")}.get(self.objective.name, ("none",))
        if self.mask.kind not in allowed:
            raise ValueError(f"mask.kind={self.mask.kind} with objective.name={self.objective.name}: allowed is {' or '.join(allowed)}")
        return self

    def required_features(self) -> frozenset[str]:
        """Reference features that objective and mask need together."""
        needed = self.objective.build().requires
        if isinstance(self.mask, ActivationMaskSection):
            needed |= {"activation_mask"}
        if isinstance(self.mask, LearnedMaskSection):
            needed |= {LEARNED_MASKS[self.mask.architecture].feature}
        return needed

    def reference_mode(self) -> Literal["stored", "online"]:
        """`auto` scores online exactly when the mask reads every layer (L * d values per token to store)."""
        if self.reference.mode != "auto":
            return self.reference.mode
        return "online" if "reference_layers" in self.required_features() else "stored"

    def stored_features(self) -> frozenset[str]:
        """What the reference stage writes for this recipe (empty when the reference runs online)."""
        needed = self.required_features() if self.reference_mode() == "stored" else frozenset()
        return needed | frozenset(self.reference.features)


def stage_settings(config: Section, stage: Stage) -> dict[str, Any]:
    """Dotted key -> JSON value of every field that changes the result of `stage`."""
    found: dict[str, Any] = {}
    _collect(config, stage, "", found)
    return found


def _collect(section: Section, stage: Stage, prefix: str, found: dict[str, Any]) -> None:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        extra = field.json_schema_extra
        owner = extra["stage"] if isinstance(extra, dict) and "stage" in extra else section.STAGE
        if isinstance(value, Section):
            _collect(value, stage, f"{prefix}{name}.", found)
        elif isinstance(value, tuple) and value and isinstance(value[0], Section):
            for i, item in enumerate(value):
                _collect(item, stage, f"{prefix}{name}[{i}].", found)
        elif owner == stage:
            found[prefix + name] = section.model_dump(mode="json")[name]
