from .check import check_reference as check_reference, discard_damaged as discard_damaged
from .cost import (
    count_parameters as count_parameters,
    scoring_device as scoring_device,
    settle_mode as settle_mode,
)
from .facts import (
    FrozenReference as FrozenReference,
    ReferenceFacts as ReferenceFacts,
    reference_facts as reference_facts,
)
from .family_checks import check_hooks as check_hooks
from .features import FeatureSource as FeatureSource, feature_source as feature_source
from .formats import (
    formats_of as formats_of,
    head_bytes as head_bytes,
    stored_bytes as stored_bytes,
)
from .model import (
    batch_tokens as batch_tokens,
    load_reference as load_reference,
)
from .origins import (
    feature_origins as feature_origins,
    reference_model_dir as reference_model_dir,
    stored_origins as stored_origins,
)
from .stage import (
    has_features as has_features,
    open_reference as open_reference,
    reference_record as reference_record,
    run_reference as run_reference,
    usable_rows as usable_rows,
)
