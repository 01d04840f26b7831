"""A run as its report sees it, and the page without the library that it carries."""

import re
from html import unescape

from evaluation.report import RunView

INTERVAL = {"mean": 0.25, "low": 0.125, "high": 0.375, "n": 24}


def own_part(page: str) -> str:
    """The page less the plotting library, which is not ours to check."""
    found, times = re.subn(r'<script id="plotly">.*?</script>', "", page, flags=re.S)
    assert times == 1, "once per page"
    return found


def words(html: str) -> str:
    """The text of a part of a page, without its tags."""
    return unescape(" ".join(re.sub(r"<[^>]*>", "", html).split()))


def view(name: str) -> RunView:
    sentiment = {
        "num_prompts": 9, "reward/before": INTERVAL, "reward/after": INTERVAL,
        "reward/gain": INTERVAL, "kl/policy_reference": INTERVAL,
        "kl/policy_reference_floor": 0.0625, "temperature": 1.0, "top_p": 1.0,
        "distinct_2/before": INTERVAL, "distinct_2/after": INTERVAL,
    }  # fmt: skip
    masks: dict[str, object] = {"auc/chance": 0.5}
    for mask in ("reward_mask", "kl_mask"):
        masks |= {
            f"{mask}/mean": 0.5,
            f"{mask}/max": 2.0,
            f"{mask}/zero_fraction": 0.25,
            f"{mask}/top_tokens": [{"token": "<good>"}],
        }
    masks |= {f"auc/{k}": INTERVAL for k in ("reward_mask", "kl_mask", "token_kl", "random_mask")}
    return RunView(
        name=name,
        recipe={
            "objective": {"name": "sparsepo", "beta": 0.1},
            "mask": {"kind": "learned", "architecture": "simple_last", "sharing": "common"},
            "model": {"name_or_path": "m"},
            "train": {"learning_rate": 1e-3},
            "evaluate": {"reward": {"kind": "vader"}},
        },
        recipe_yaml="run_dir: x",
        counts={"steps": 3},
        data_counts={"pairs": {"train": 1234, "validation": 0, "test": 9}},
        metrics=[{"step": s, "loss": 0.7 - s / 10, "rewards/margins": s / 10} for s in range(1, 4)],
        results={"sentiment": sentiment, "masks": masks},
        samples=[
            {
                "prompt": "<script>x</script>",
                "start_text": "s",
                "policy_text": "p",
                "start_reward": -0.5,
                "policy_reward": 0.5,
            }
        ],
        responses=[
            {
                "prompt_hash": "1",
                "prompt": "<i>asked</i>",
                "side": "chosen",
                "tokens": [" a", "<b>"],
                "reward_mask": [0.0, 1.5],
                "kl_mask": [0.0, 1.0],
                "token_kl": [0.1, 0.2],
                "is_key": [False, True],
            }
        ],
    )
