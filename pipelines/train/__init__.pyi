from .builders import build_objective as build_objective
from .checkpoint_contents import check_files as check_files
from .facts import TrainingFacts as TrainingFacts
from .follow import MetricsFollower as MetricsFollower
from .kept import drop_weights as drop_weights
from .metrics import read_metrics as read_metrics
from .model_card import CardFacts as CardFacts, model_card as model_card
from .places import free_places_of_dead as free_places_of_dead
from .policy import open_policy as open_policy, open_untrained as open_untrained
from .published import check_published as check_published
from .stage import (
    TRAIN as TRAIN,
    require_validation as require_validation,
    training_facts as training_facts,
)
from .steps import completed_steps as completed_steps
