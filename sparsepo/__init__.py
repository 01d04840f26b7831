"""sparsepo: token-masked preference optimisation for language models.

The methods are SparsePO, MaPO, TDPO, DPO and their relatives.

The library needs torch, transformers and safetensors only; the pipeline around it lives in the
package `pipelines`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.7.0"
