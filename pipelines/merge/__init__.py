"""Several tuned models as one policy: sampled token by token, for every weight of a sweep."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
