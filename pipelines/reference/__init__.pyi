from .cost import (
    count_parameters as count_parameters,
    scoring_device as scoring_device,
    settle_mode as settle_mode,
)
from .discriminators import (
    layer_of as layer_of,
    load_discriminator as load_discriminator,
    tokenizer_of as tokenizer_of,
)
from .facts import (
    FrozenReference as FrozenReference,
    ReferenceFacts as ReferenceFacts,
    usable_rows as usable_rows,
)
from .family_checks import check_hooks as check_hooks
from .features import FeatureSource as FeatureSource, feature_source as feature_source
from .forecast import planned_steps as planned_steps
from .formats import token_state_size as token_state_size
from .model import load_reference as load_reference
from .origins import feature_origins as feature_origins, reference_model_dir as reference_model_dir
from .stage import REFERENCE as REFERENCE, run_facts as run_facts
from .store import finished_reference as finished_reference, open_reference as open_reference
