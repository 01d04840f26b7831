from .builders import build_objective as build_objective
from .checkpoint import check_files as check_files
from .facts import TrainingFacts as TrainingFacts
from .fit import check_published as check_published
from .follow import MetricsFollower as MetricsFollower
from .metrics import read_metrics as read_metrics
from .policy import open_policy as open_policy, open_untrained as open_untrained
from .stage import (
    TRAIN as TRAIN,
    require_validation as require_validation,
    training_facts as training_facts,
)
from .steps import completed_steps as completed_steps
