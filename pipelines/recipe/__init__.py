"""What a user asks for: the recipe's schema and files, and the record that a stage keeps of it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
