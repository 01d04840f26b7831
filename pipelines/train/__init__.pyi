from .builders import build_objective as build_objective
from .checkpoint import check_files as check_files
from .facts import TrainingFacts as TrainingFacts, training_facts as training_facts
from .light import TRAIN as TRAIN, require_validation as require_validation
from .metrics import read_metrics as read_metrics
from .policy import open_policy as open_policy
from .stage import check_published as check_published, run_train as run_train
from .steps import completed_steps as completed_steps
