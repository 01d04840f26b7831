"""Preference objectives: a flat token record in, one loss per pair out."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
