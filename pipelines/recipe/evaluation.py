"""The recipe's schema for evaluation, sampling and scheduled evaluation."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipelines.recipe.endpoint import EndpointSection
from pipelines.recipe.location import Directory, File, Model
from pipelines.recipe.section import Section, added, of_stage


class VaderReward(Section):
    """VADER's compound sentiment in [-1, 1]; no model, no network."""

    STAGE = "evaluate"
    kind: Literal["vader"] = "vader"


class BrevityReward(Section):
    """Minus the number of words over most_words, in [-1, 0]: shorter is better; no model.

    most_words: from so many words on the reward is -1.
    """

    STAGE = "evaluate"
    kind: Literal["brevity"] = "brevity"
    most_words: int = Field(100, ge=1)


class ClassifierReward(Section):
    """Probability of one label under a local sequence classification model.

    model: the classifier. label: the one whose probability counts.
    """

    STAGE = "evaluate"
    kind: Literal["classifier"] = "classifier"
    model: Model
    label: str = "POSITIVE"


RewardSection = Annotated[
    VaderReward | BrevityReward | ClassifierReward, Field(discriminator="kind")
]


class GenerationSection(Section):
    """How responses are sampled.

    engine: transformers everywhere, or vllm where it is installed (through ray.data.llm; other
    samples, from the same distribution). max_new_tokens: of a response. temperature: 0 takes the
    likeliest token. top_p: the likeliest tokens with this much probability are drawn from.
    """

    STAGE = "evaluate"
    engine: Literal["transformers", "vllm"] = "transformers"
    max_new_tokens: int = Field(48, ge=1)
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)


class RewardModelJudge(Section):
    """A local sequence classification model that scores conversation and reply.

    The higher score wins, equal ones tie.

    label: whose probability is the score; by default the model's only logit. model: the judge.
    """

    STAGE = "evaluate"
    kind: Literal["reward_model"] = "reward_model"
    model: Model
    label: str | None = None


class OpenAIJudge(EndpointSection):
    """Any endpoint that speaks OpenAI's chat completions.

    Both orders are asked; who changes their mind with the order means a tie.

    base_url: up to and without /chat/completions. api_key_env: environment variable with the key,
    if the endpoint wants one. max_tries: of one question, nonsense answers included.
    max_failed_fraction: questions that may stay without a verdict. model: its name at the endpoint.
    max_tokens, temperature: of an answer. timeout_seconds: of a try. num_threads: questions at
    once.
    """

    STAGE = "evaluate"


Judge = Annotated[RewardModelJudge | OpenAIJudge, Field(discriminator="kind")]


class SummarizationSection(Section):
    """Local models for the metrics that need one; those metrics are left out without it.

    bert_score_layer: index into the encoder's hidden states, the last by default. bert_score_model:
    an encoder. entailment_model: a classifier of premise and hypothesis. entailment_label: its
    label for what follows.
    """

    STAGE = "evaluate"
    bert_score_model: Model | None = None
    bert_score_layer: int | None = Field(None, ge=0)
    entailment_model: Model | None = None
    entailment_label: str = "entailment"


class CodeSection(Section):
    """Programs for the tasks of a file in HumanEval's or MBPP's format (JSON lines).

    apply_chat_template: ask for the function in a chat message, for models tuned to answer;
    otherwise the prompt is continued as it stands. k: of pass@k, as far as num_samples reaches.
    timeout_seconds: wall clock per program. num_runners: programs at once and node. tasks: the
    file. max_tasks: the first ones. num_samples: programs per task. memory_mib: a program's
    ceiling.
    """

    STAGE = "evaluate"
    tasks: File
    max_tasks: int | None = Field(None, ge=1)
    apply_chat_template: bool = False
    num_samples: int = Field(20, ge=1)
    k: tuple[int, ...] = Field((1, 10, 100), min_length=1)
    generation: GenerationSection = GenerationSection(
        max_new_tokens=256, temperature=0.8, top_p=0.95
    )
    timeout_seconds: float = Field(10.0, gt=0)
    memory_mib: int = Field(512, ge=64)
    num_runners: int | None = of_stage(None, None, ge=1)


class LeaderboardSection(Section):
    """Tasks of lm-evaluation-harness (the extra `leaderboard`), by name.

    include_path: a directory with task files of one's own. limit: documents per task. tasks: their
    names. num_fewshot: worked examples before the question; by default the task's. batch_size:
    questions at once. apply_chat_template: ask in chat messages.
    """

    STAGE = "evaluate"
    tasks: tuple[str, ...] = Field(min_length=1)
    include_path: Directory | None = of_stage(None, None)
    num_fewshot: int | None = Field(None, ge=0)
    limit: int | None = Field(None, ge=1)
    batch_size: int = Field(16, ge=1)
    apply_chat_template: bool = False


class EvaluateSection(Section):
    """The benchmarks of an evaluation and the samples that they look at.

    model: evaluated in place of the trained model, beside the starting model; nothing is trained
    then, and its implicit reward is DPO's. name: keeps this evaluation beside the run's others.
    temperatures: of the samples that sentiment, dialogue and summarization look at, the first being
    the one of unqualified metric names; by default generation.temperature alone.
    sequences_per_batch: sampled together; other numbers draw other samples. benchmarks: what is
    measured. split: whose pairs and prompts. max_pairs: the first ones. num_prompts: prompts with
    samples. samples_per_prompt: drawn for each of them by both models; self-BLEU needs two.
    control: what stands in front of the model's prompts in turn, of the two texts that it was tuned
    with, or nothing; the first is the one of unqualified metric names. key_words: a file of words
    whose tokens the masks should find. seed: of samples and intervals.
    bootstrap_samples: draws for the intervals of rank correlations; the others have formulas.
    batch_tokens: tokens per forward. num_actors: copies of the models; by default one per GPU.
    """

    STAGE = "evaluate"
    model: Model | None = of_stage(None, None)
    name: str | None = of_stage(None, None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    benchmarks: tuple[
        Literal[
            "preference", "sentiment", "masks", "dialogue", "summarization", "code", "leaderboard"
        ],
        ...,
    ] = (
        "preference",
        "sentiment",
        "masks",
    )
    split: Literal["test", "validation"] = "test"
    max_pairs: int | None = Field(None, ge=1)
    num_prompts: int = Field(200, ge=1)
    samples_per_prompt: int = added(1, ge=1)
    control: tuple[Literal["good", "bad", "none"], ...] = added(())
    sequences_per_batch: int = Field(64, ge=1)
    generation: GenerationSection = GenerationSection()
    temperatures: tuple[Annotated[float, Field(ge=0)], ...] = ()
    reward: RewardSection = VaderReward()
    judge: Judge | None = None
    summarization: SummarizationSection = SummarizationSection()
    code: CodeSection | None = None
    leaderboard: LeaderboardSection | None = None
    key_words: File | None = None
    seed: int = 0
    bootstrap_samples: int = Field(2000, ge=100)
    batch_tokens: int = of_stage(None, 8192, ge=1)
    num_actors: int | None = of_stage(None, None, ge=1)

    @model_validator(mode="after")
    def _complete(self) -> "EvaluateSection":
        for benchmark, key in (
            ("dialogue", "judge"),
            ("code", "code"),
            ("leaderboard", "leaderboard"),
        ):
            if benchmark in self.benchmarks and getattr(self, key) is None:
                raise ValueError(f"benchmarks names {benchmark}: set evaluate.{key}")
        if len(set(self.temperatures)) < len(self.temperatures):
            raise ValueError(f"temperatures = {list(self.temperatures)}: one of them occurs twice")
        if len(set(self.control)) < len(self.control):
            raise ValueError(f"control = [{', '.join(self.control)}]: one of them occurs twice")
        return self

    def sampled_benchmarks(self) -> list[str]:
        """Those that look at samples for held-out prompts."""
        return [
            name for name in ("sentiment", "dialogue", "summarization") if name in self.benchmarks
        ]

    def samples_at(self, temperature: float) -> int:
        """Samples of a prompt: at temperature 0 all of them would be the same."""
        return self.samples_per_prompt if temperature > 0 else 1

    def sampling_temperatures(self) -> tuple[float, ...]:
        return self.temperatures or (self.generation.temperature,)

    def sampling_top_p(self, temperature: float) -> float:
        """1 at temperature 0, where the likeliest token is taken whatever it is."""
        return self.generation.top_p if temperature > 0 else 1.0


class SampleSection(Section):
    """Candidates per prompt from `model.name_or_path`, scored, in the scored-candidates form.

    num_candidates: per prompt. max_prompts: the first ones. seed: of the samples. batch_prompts:
    prompts per task. num_actors: copies of the model; by default one per GPU, or per machine.
    """

    STAGE = "sample"
    num_candidates: int = Field(8, ge=2)
    max_prompts: int | None = Field(None, ge=1)
    generation: GenerationSection = GenerationSection()
    reward: RewardSection = VaderReward()
    seed: int = 0
    batch_prompts: int = of_stage(None, 64, ge=1)
    num_actors: int | None = of_stage(None, None, ge=1)


class Gate(Section):
    """A condition on one number of an evaluation, named <benchmark>/<name> as in its JSON.

    min, max: limits of the value. max_drop, max_rise: how far it may lie below or above the
    release's (schedule.release). metric: the number's name.
    """

    metric: str = Field(min_length=1)
    min: float | None = None
    max: float | None = None
    max_drop: float | None = Field(None, ge=0)
    max_rise: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _limits(self) -> "Gate":
        if (self.min, self.max, self.max_drop, self.max_rise) == (None,) * 4:
            raise ValueError(
                f"the gate on {self.metric} has no limit: set min, max, max_drop or max_rise"
            )
        return self

    def compares(self) -> bool:
        return self.max_drop is not None or self.max_rise is not None


class ScheduleSection(Section):
    """Evaluation of every new checkpoint at certain times.

    cron: as in crontab, five fields (minute hour day month weekday) or a name (@daily). release: a
    run directory with a finished evaluation, which gates with max_drop and max_rise compare with.
    webhook_env: environment variable with the address that is told of failed gates. timezone: of
    cron. gates: what fails an evaluation. webhook: the address that is told of failed gates.
    """

    cron: str | None = None
    timezone: str = "UTC"
    gates: tuple[Gate, ...] = ()
    release: Directory | None = None
    webhook: str | None = Field(None, pattern=r"^https?://")
    webhook_env: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> "ScheduleSection":
        if self.release is None and any(gate.compares() for gate in self.gates):
            raise ValueError(
                "a gate with max_drop or max_rise compares with a release: set schedule.release "
                "to its run directory"
            )
        if self.webhook is not None and self.webhook_env is not None:
            raise ValueError("set webhook or webhook_env, not both")
        return self
