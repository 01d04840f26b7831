"""The line that a finished evaluation is worth."""

from typing import Any

from evaluation.intervals import mean_of
from evaluation.kl import SampledKl, sampled_kls


def summary_of(results: dict[str, dict[str, Any]]) -> str:
    """The main number of every benchmark."""
    parts = []
    if "num_desirable" in results.get("preference", {}):
        found = results["preference"]
        ranks = ""
        if "auc/implicit_reward" in found:
            ranks = (
                f", AUC {mean_of(found['auc/logps/before']):.3f} by log-probability before, "
                f"{mean_of(found['auc/implicit_reward']):.3f} by implicit reward after"
            )
        rate = found["accuracy/implicit_reward"]["mean"]
        parts.append(f"held-out labels {rate:.3f} right by implicit reward{ranks}")
    elif "preference" in results:
        before, after = (
            results["preference"]["accuracy/logps/before"],
            results["preference"]["accuracy/implicit_reward"],
        )
        parts.append(
            f"held-out accuracy {before['mean']:.3f} by log-probability before, "
            f"{after['mean']:.3f} by implicit reward after"
        )
    if "sentiment" in results:
        gain, kl = results["sentiment"]["reward/gain"], next(sampled_kls(results["sentiment"]))
        parts.append(
            f"reward gain {gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}] at "
            f"{_distance(kl)}"
        )
    for opponent in ("chosen", "start"):
        rate = results.get("dialogue", {}).get(f"win_rate/{opponent}")
        if rate is not None:
            parts.append(
                f"wins {rate['mean']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}] against "
                f"{opponent}"
            )
    if "summarization" in results:
        gain = results["summarization"]["rougeL/gain"]
        parts.append(f"ROUGE-L gain {gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]")
    if "code" in results:
        code = results["code"]
        rates = [
            f"{key.removesuffix('/after')} {code[key]['mean']:.3f}"
            for key in code
            if key.endswith("/after") and key.startswith("pass@")
        ]
        parts.append(f"{', '.join(rates)} on {code['num_tasks']} tasks")
    return "; ".join(parts)


def _distance(kl: SampledKl) -> str:
    """A KL with its floor, if it has one above 0, and what it is along other than own samples."""
    floor = f" (floor {kl.floor:.2g})" if kl.floor else ""
    along = f" along samples at {kl.sampling}" if kl.sampling else ""
    return f"KL {kl.value['mean']:.2f}{floor}{along}"
