"""Many recipes at once: a searched space, its trials, the front of the best."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
