from .files import load_merge as load_merge
from .schema import Merge as Merge
from .stage import run_merge as run_merge
