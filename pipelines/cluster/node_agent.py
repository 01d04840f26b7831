"""The agent that Ray starts beside a node, without what a dashboard or a client would ask it for.

Ray starts a node only with its agent, which reports, serves logs and takes jobs: in a Ray of a
command's own nobody asks for any of it. This is the agent as Ray without its optional parts has it.
"""

import runpy
import sys
from pathlib import Path

sys.path.remove(str(Path(__file__).parent))  # modules here have names that others may have
import ray
from ray.dashboard import utils


def _no_modules(kind: type) -> list[type]:
    return []


if __name__ == "__main__":
    utils.get_all_modules = _no_modules
    agent = Path(ray.__file__).with_name("dashboard") / "agent.py"
    sys.argv = [str(agent), *sys.argv[1:], "--minimal"]
    runpy.run_path(str(agent), run_name="__main__")
