from .evaluation import (
    ClassifierReward as ClassifierReward,
    CodeSection as CodeSection,
    EvaluateSection as EvaluateSection,
    GenerationSection as GenerationSection,
    LeaderboardSection as LeaderboardSection,
    OpenAIJudge as OpenAIJudge,
    RewardModelJudge as RewardModelJudge,
    ScheduleSection as ScheduleSection,
    VaderReward as VaderReward,
)
from .files import (
    from_yaml as from_yaml,
    load_recipe as load_recipe,
    override as override,
    read_mapping as read_mapping,
    set_keys as set_keys,
    to_yaml as to_yaml,
    validate_recipe as validate_recipe,
    write_yaml as write_yaml,
)
from .interpolation import refuse_resolvers as refuse_resolvers
from .keys import explain as explain, unknown_key_message as unknown_key_message
from .location import (
    Directory as Directory,
    RunDirectory as RunDirectory,
    locations as locations,
    with_absolute_paths as with_absolute_paths,
)
from .masks import (
    ActivationMaskConfig as ActivationMaskConfig,
    LearnedMaskConfig as LearnedMaskConfig,
    MaskConfig as MaskConfig,
    NoMask as NoMask,
)
from .objectives import ObjectiveConfig as ObjectiveConfig, SFTConfig as SFTConfig
from .schema import (
    ColumnNames as ColumnNames,
    DataSection as DataSection,
    LoraSection as LoraSection,
    RaySection as RaySection,
    Recipe as Recipe,
    ReferenceSection as ReferenceSection,
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
