"""What frozen models know of every pair: scored once, stored, read by all that follows."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
