"""Every bad input of the suite that `plan` and `run` are to refuse, each with the overrides that
make it and what its line says. An input is added by adding an entry to one of the modules here.
"""

from bad_inputs import controls, evaluations, files, models, recipes, runs
from bad_inputs.world import Bad, World

_TABLES = (recipes.BAD, files.BAD, models.BAD, evaluations.BAD, controls.BAD, runs.BAD)
BAD: dict[str, Bad] = {name: bad for table in _TABLES for name, bad in table.items()}
assert len(BAD) == sum(map(len, _TABLES)), "two inputs are called alike"

__all__ = ["BAD", "World"]
