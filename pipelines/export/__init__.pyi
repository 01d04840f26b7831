from .export import Wanted as Wanted, run_export as run_export
from .finished import trained_run as trained_run
