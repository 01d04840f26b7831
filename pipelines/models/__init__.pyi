from .accelerator import device_kind as device_kind, dtype_name as dtype_name
from .adapters import (
    merged as merged,
    merged_adapter as merged_adapter,
    with_adapter as with_adapter,
)
from .chat_template import (
    ChatSettings as ChatSettings,
    ChatTemplate as ChatTemplate,
    Message as Message,
    TemplateRefused as TemplateRefused,
    end_ids as end_ids,
    last_of as last_of,
    special_ids as special_ids,
    template_file_text as template_file_text,
)
from .control import (
    Control as Control,
    in_front as in_front,
    recorded_control as recorded_control,
)
from .control_tokens import (
    add_rows as add_rows,
    control_of as control_of,
    evaluated_control as evaluated_control,
    with_soft_tokens as with_soft_tokens,
)
from .device import (
    LateNumbers as LateNumbers,
    Placement as Placement,
    is_out_of_memory as is_out_of_memory,
    refuse_other_orders as refuse_other_orders,
    sums_in_one_order as sums_in_one_order,
)
from .directories import (
    ADAPTER_CONFIG as ADAPTER_CONFIG,
    base_dir as base_dir,
    json_list_of as json_list_of,
    json_of as json_of,
    model_config as model_config,
    resolve_model as resolve_model,
    tokenizer_home as tokenizer_home,
)
from .durations import (
    EVALUATION_START as EVALUATION_START,
    RAY_START as RAY_START,
    SCORING_START as SCORING_START,
    TRAINING_START as TRAINING_START,
    TRIAL_START as TRIAL_START,
    Duration as Duration,
    SideBySide as SideBySide,
    forward_seconds as forward_seconds,
    num_layers as num_layers,
    pairs_seconds as pairs_seconds,
    sampling_seconds as sampling_seconds,
    training_seconds as training_seconds,
)
from .ensemble import Ensemble as Ensemble, load_ensemble as load_ensemble
from .families import (
    STREAMS as STREAMS,
    family_of as family_of,
    num_experts as num_experts,
)
from .fingerprints import (
    check_family as check_family,
    model_shape as model_shape,
    tokenizer_fingerprint as tokenizer_fingerprint,
    weights_fingerprint as weights_fingerprint,
)
from .generation import generate as generate, generation_config as generation_config
from .hardware import (
    activation_bytes_per_token as activation_bytes_per_token,
    compile_forecast as compile_forecast,
    feed_forward_size as feed_forward_size,
    micro_batch_tokens as micro_batch_tokens,
    peak_tflops as peak_tflops,
    sustained_tflops as sustained_tflops,
)
from .job_sampler import JobSampler as JobSampler
from .layout import batch_layout as batch_layout
from .loading import (
    compute_device as compute_device,
    from_directory as from_directory,
    hf_config as hf_config,
    load_causal_lm as load_causal_lm,
    load_tokenizer as load_tokenizer,
    reference_dtype as reference_dtype,
    without_weights as without_weights,
)
from .merged_sampling import MergeRule as MergeRule, sample_merged as sample_merged
from .quick_imports import quick_imports as quick_imports
from .readers import (
    check_families as check_families,
    check_generation as check_generation,
    check_positions as check_positions,
    check_readers as check_readers,
    longest_row as longest_row,
    models_are_here as models_are_here,
    num_known_tokens as num_known_tokens,
    padded_vocabularies as padded_vocabularies,
)
from .response_ends import (
    ResponseEnds as ResponseEnds,
    response_ends as response_ends,
)
from .sizes import (
    check_tokenizer as check_tokenizer,
    embedding_rows as embedding_rows,
)
from .tensors import model_tensors as model_tensors
from .token_texts import TokenTexts as TokenTexts
from .trusted_code import (
    TRUSTED_CODE as TRUSTED_CODE,
    may_run as may_run,
    publish_code as publish_code,
    refuse_other_tokenizer as refuse_other_tokenizer,
)
