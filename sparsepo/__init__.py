"""sparsepo: token-masked preference optimisation for language models.

The methods are SparsePO, MaPO, TDPO, DPO and their relatives.

The library needs torch, transformers, safetensors and lazy_loader only. A name's module is imported
when the name is first used. The pipeline around the library lives in the package `pipelines`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.7.0"
