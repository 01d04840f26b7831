from .conversation import (
    PairEncoder as PairEncoder,
    answer_ids as answer_ids,
    text_prompt_ids as text_prompt_ids,
)
from .question import Question as Question
from .sources import (
    chunks_of as chunks_of,
    left_out as left_out,
    read_chunk as read_chunk,
    source_fingerprint as source_fingerprint,
)
from .stage import PREPARE as PREPARE, none_kept as none_kept
from .table import (
    SPLITS as SPLITS,
    TOKEN_COLUMNS as TOKEN_COLUMNS,
    PairTable as PairTable,
    open_pairs as open_pairs,
    pairs_of as pairs_of,
    read_pairs as read_pairs,
    shard_name as shard_name,
)
