"""discriminator: a head that tells good tokens from bad ones, trained on frozen states (TLCR)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
