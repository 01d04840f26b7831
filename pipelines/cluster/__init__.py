"""Ray: a session, its machines and CPUs, tasks on actors, jobs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
