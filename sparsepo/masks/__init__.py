"""Token masks: the weights of each response token's log ratio (reward mask) and KL (kl mask)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
