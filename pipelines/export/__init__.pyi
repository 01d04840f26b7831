from .export import Wanted as Wanted, run_export as run_export
