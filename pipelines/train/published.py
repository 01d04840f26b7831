"""Whether what a training published is still what it was; nothing heavy is imported."""

from pipelines.errors import UserError
from pipelines.recipe import MANIFEST, METRICS, read_manifest
from pipelines.storage import RunStore
from pipelines.train.steps import completed_steps


def check_published(store: RunStore) -> None:
    """Compare the published model and masks with the checksums in the stage's manifest.

    Raises: UserError naming the first file that is missing or damaged.
    """
    if not store.exists(MANIFEST):
        return  # published a moment ago, and its driver was killed before it said so
    for path, expected in read_manifest(store)["outputs"].items():
        if path.startswith(f"{METRICS}/"):
            continue  # who shows them looks at them
        if not _is_as_written(store, path, expected):
            raise UserError(
                f"{store.root}/{path} is missing or damaged: it is not what training published; "
                f"{_cure(store)}"
            )


def _is_as_written(store: RunStore, path: str, expected: str) -> bool:
    try:
        return store.checksum(path) == expected
    except OSError:  # it is not there, or a folder is
        return False


def _cure(store: RunStore) -> str:
    steps = completed_steps(store)
    return f"remove {store.root}/{MANIFEST} and run `sparsepo train` again" + (
        f" (it goes on from step {steps[-1]})" if steps else ""
    )
