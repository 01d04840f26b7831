from .claims import Claims as Claims, ClaimTimes as ClaimTimes
from .facts import remembered as remembered
from .hashes import (
    CACHE as CACHE,
    digest as digest,
    file_hash as file_hash,
    file_state as file_state,
    hashes_of_written as hashes_of_written,
)
from .json_texts import parse_json as parse_json
from .near_names import did_you_mean as did_you_mean, nearest_path as nearest_path
from .object_stores import (
    file_info as file_info,
    filesystem_of as filesystem_of,
    open_input as open_input,
)
from .pace import (
    Pace as Pace,
    progress_text as progress_text,
    shown_seconds as shown_seconds,
)
from .presence import (
    newest_note as newest_note,
    present as present,
    tell_progress as tell_progress,
    told_progress as told_progress,
    whereabouts as whereabouts,
    who_works as who_works,
)
from .read_errors import told_why as told_why
from .records import (
    Fields as Fields,
    damaged as damaged,
    read_lines as read_lines,
    read_list as read_list,
    read_listed as read_listed,
    read_parquet as read_parquet,
    read_record as read_record,
    read_whole as read_whole,
    write_record as write_record,
)
from .row_group_cache import RowGroupCache as RowGroupCache
from .spans import (
    KINDS as KINDS,
    REST as REST,
    Beside as Beside,
    Span as Span,
    add_spans as add_spans,
    recorded as recorded,
    spent as spent,
    split_of as split_of,
)
from .store import RunStore as RunStore
from .task_results import TaskResults as TaskResults
from .trees import (
    Tree as Tree,
    folder_of_pattern as folder_of_pattern,
    has_wildcard as has_wildcard,
    links_to_others as links_to_others,
    local_tree as local_tree,
    name_pattern as name_pattern,
    special_kind as special_kind,
    tree_below as tree_below,
)
from .user_key import user_key as user_key
from .write_errors import told_where as told_where
