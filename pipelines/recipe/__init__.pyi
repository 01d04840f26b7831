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
    check_config as check_config,
    load_recipe as load_recipe,
    override as override,
    packaged as packaged,
    packaged_template as packaged_template,
    read_config as read_config,
    read_mapping as read_mapping,
    set_keys as set_keys,
    to_yaml as to_yaml,
    validate_recipe as validate_recipe,
    write_yaml as write_yaml,
    write_yaml_beside as write_yaml_beside,
)
from .inputs import Located as Located
from .interpolation import refuse_resolvers as refuse_resolvers
from .keys import plain_keys as plain_keys, values_of as values_of
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
from .objectives import (
    DPOConfig as DPOConfig,
    ObjectiveConfig as ObjectiveConfig,
    SFTConfig as SFTConfig,
)
from .problems import (
    explain as explain,
    key_meant as key_meant,
    unknown_key_message as unknown_key_message,
)
from .record import (
    StageRecord as StageRecord,
    library_versions as library_versions,
    read_manifest as read_manifest,
    read_started as read_started,
)
from .run_paths import (
    ATTEMPT as ATTEMPT,
    BEST as BEST,
    BOARD as BOARD,
    CANDIDATES as CANDIDATES,
    CHECKPOINTS as CHECKPOINTS,
    CODE_SAMPLES as CODE_SAMPLES,
    CONFIG as CONFIG,
    DEFINITION as DEFINITION,
    EVENTS as EVENTS,
    EXECUTED as EXECUTED,
    FAILED_ROWS as FAILED_ROWS,
    FAILURE as FAILURE,
    FRONT as FRONT,
    GATES as GATES,
    HEAD_FILE as HEAD_FILE,
    HEAD_SETTINGS as HEAD_SETTINGS,
    HISTORY as HISTORY,
    LAST_TICK as LAST_TICK,
    LENGTHS as LENGTHS,
    MANIFEST as MANIFEST,
    MARKERS as MARKERS,
    MASKS as MASKS,
    MEMORY as MEMORY,
    METRICS as METRICS,
    MISSING as MISSING,
    MODEL as MODEL,
    PAGE as PAGE,
    PUBLISHED as PUBLISHED,
    REJECTED_ROWS as REJECTED_ROWS,
    RESULTS as RESULTS,
    RUNS as RUNS,
    SAMPLES as SAMPLES,
    SPANS as SPANS,
    STARTED as STARTED,
    STATE as STATE,
    TIMELINE as TIMELINE,
    TOKEN_WEIGHTS as TOKEN_WEIGHTS,
    TOKENS as TOKENS,
    TRIAL as TRIAL,
    TRIALS as TRIALS,
    VERDICTS as VERDICTS,
    RunPaths as RunPaths,
    checkpoint_folder as checkpoint_folder,
    failure_files as failure_files,
)
from .schema import (
    ColumnNames as ColumnNames,
    DataSection as DataSection,
    LoraSection as LoraSection,
    ModelSection as ModelSection,
    RaySection as RaySection,
    Recipe as Recipe,
    ReferenceSection as ReferenceSection,
    SelectionSection as SelectionSection,
    SFTSection as SFTSection,
    Source as Source,
    TrainSection as TrainSection,
)
from .section import stage_settings as stage_settings
from .stage import Action as Action, Run as Run, Say as Say, Stage as Stage, View as View
