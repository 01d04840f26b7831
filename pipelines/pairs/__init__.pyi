from .conversation import (
    ChatRenderer as ChatRenderer,
    Conversation as Conversation,
    PairEncoder as PairEncoder,
    RawPair as RawPair,
    RowRejected as RowRejected,
    answer_ids as answer_ids,
    text_prompt_ids as text_prompt_ids,
)
from .dataset_card import dataset_card as dataset_card
from .prompts import (
    Prompt as Prompt,
    PromptEncoder as PromptEncoder,
    Prompts as Prompts,
    check_prompts as check_prompts,
)
from .question import Question as Question
from .sources import (
    left_out as left_out,
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
