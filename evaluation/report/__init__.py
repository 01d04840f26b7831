"""The pages: the report of a run or of several, a sweep's results, and what `watch` shows."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
