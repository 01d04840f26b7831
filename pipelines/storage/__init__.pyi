from .claims import Claims as Claims, ClaimTimes as ClaimTimes
from .facts import remembered as remembered
from .hashes import (
    CACHE as CACHE,
    digest as digest,
    file_hash as file_hash,
    file_state as file_state,
)
from .row_group_cache import RowGroupCache as RowGroupCache
from .store import RunStore as RunStore, filesystem_of as filesystem_of
from .task_results import TaskResults as TaskResults
