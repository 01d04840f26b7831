from .actor_pool import (
    Pool as Pool,
    pool_gpus as pool_gpus,
    quieten_ray_data as quieten_ray_data,
    run_alone as run_alone,
    run_tasks as run_tasks,
)
from .bars import Bar as Bar
from .failures import (
    failure_of as failure_of,
    sendable as sendable,
    told_in_a_line as told_in_a_line,
)
from .jobs import Cluster as Cluster, Job as Job, exit_code_of as exit_code_of
from .machines import (
    known_resources as known_resources,
    second_choice as second_choice,
    tell_of_wait as tell_of_wait,
    wait_for_workers as wait_for_workers,
)
from .resources import Resources as Resources, Share as Share, local_cpus as local_cpus
from .session import (
    EarlySession as EarlySession,
    check_session as check_session,
    cluster_address as cluster_address,
    imports_ahead as imports_ahead,
    interruptible as interruptible,
    ray_session as ray_session,
)
from .shared_paths import (
    check_shared as check_shared,
    local_paths as local_paths,
    require_seen as require_seen,
)
from .waiting import start_waiting as start_waiting
