"""Where bytes live: every write of a run, whole or not at all, on a disk or an object store."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
