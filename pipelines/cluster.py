"""Connect to Ray: a running cluster if one is named, else a private one on this machine."""

import contextlib
import logging
import os
from collections.abc import Iterator

from pipelines.config import RaySection


@contextlib.contextmanager
def ray_session(config: RaySection) -> Iterator[None]:
    """Ray for the duration of a command; leaves a session that was already there alone."""
    # Quieter and quicker local sessions; a user's own settings win.
    for name, value in (
        ("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2"),
        ("RAY_AIR_NEW_OUTPUT", "0"),
        ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"),
        ("RAY_BACKEND_LOG_LEVEL", "fatal"),
        ("TOKENIZERS_PARALLELISM", "false"),
    ):
        os.environ.setdefault(name, value)
    import ray

    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    if ray.is_initialized():
        yield
        return
    address = config.address or os.environ.get("RAY_ADDRESS")
    if address:
        ray.init(address=address, logging_level=logging.WARNING)
    else:
        ray.init(
            address="local",
            num_cpus=config.num_cpus,
            # Ray Train's clean-up of placement groups asks the dashboard's state API.
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            logging_level=logging.WARNING,
            _temp_dir=config.temp_dir,
        )
    try:
        yield
    finally:
        ray.shutdown()
