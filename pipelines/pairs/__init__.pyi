from .forms import (
    PairEncoder as PairEncoder,
    RawPair as RawPair,
    RowRejected as RowRejected,
    detect_form as detect_form,
    pairs_of_row as pairs_of_row,
)
from .light import PREPARE as PREPARE
from .sources import (
    chunks_of as chunks_of,
    column_names as column_names,
    read_chunk as read_chunk,
    source_fingerprint as source_fingerprint,
)
from .stage import (
    check_lengths as check_lengths,
    open_pairs as open_pairs,
    read_pairs as read_pairs,
    run_prepare as run_prepare,
)
from .table import (
    SPLITS as SPLITS,
    TOKEN_COLUMNS as TOKEN_COLUMNS,
    PairTable as PairTable,
    pairs_of as pairs_of,
    shard_name as shard_name,
)
