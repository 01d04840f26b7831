from .builders import build_objective as build_objective
from .checkpoint import (
    DamagedCheckpoint as DamagedCheckpoint,
    check_files as check_files,
    completed_steps as completed_steps,
    load_checkpoint as load_checkpoint,
    step_folder as step_folder,
)
from .metrics import read_metrics as read_metrics
from .policy import (
    build_masks as build_masks,
    count_adapter_parameters as count_adapter_parameters,
    frozen_base as frozen_base,
    load_policy_model as load_policy_model,
)
from .stage import (
    check_published as check_published,
    run_train as run_train,
    train_record as train_record,
    train_store as train_store,
)
from .start import starting_model as starting_model
from .strategy import strategy_of as strategy_of
from .worker import MEMORY as MEMORY
