from .evaluation import (
    ClassifierReward as ClassifierReward,
    CodeSection as CodeSection,
    EvaluateSection as EvaluateSection,
    GenerationSection as GenerationSection,
    LeaderboardSection as LeaderboardSection,
    OpenAIJudge as OpenAIJudge,
    RewardModelJudge as RewardModelJudge,
    SampleSection as SampleSection,
    ScheduleSection as ScheduleSection,
    VaderReward as VaderReward,
)
from .files import (
    from_yaml as from_yaml,
    load_recipe as load_recipe,
    read_mapping as read_mapping,
    set_keys as set_keys,
    to_yaml as to_yaml,
    unknown_key_message as unknown_key_message,
    validate_recipe as validate_recipe,
    write_yaml as write_yaml,
)
from .interpolation import refuse_resolvers as refuse_resolvers
from .masks import (
    ActivationMaskConfig as ActivationMaskConfig,
    LearnedMaskConfig as LearnedMaskConfig,
    NoMask as NoMask,
)
from .objectives import SFTConfig as SFTConfig
from .schema import (
    ColumnNames as ColumnNames,
    DataSection as DataSection,
    LoraSection as LoraSection,
    RaySection as RaySection,
    Recipe as Recipe,
    SelectionSection as SelectionSection,
    Source as Source,
    TrainSection as TrainSection,
)
from .section import Stage as Stage, stage_settings as stage_settings
from .stage import (
    CONFIG as CONFIG,
    MANIFEST as MANIFEST,
    STARTED as STARTED,
    Say as Say,
    StageRecord as StageRecord,
)
