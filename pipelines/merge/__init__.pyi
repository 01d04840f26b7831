from .files import load_merge as load_merge
from .stage import run_merge as run_merge
