"""Whether the KL that a metric names is the one that a recipe's evaluation reports."""

from collections.abc import Iterable

from evaluation.kl import OFF_POLICY, POLICY_REFERENCE, sampled_kl_key
from pipelines.errors import UserError
from pipelines.recipe import Recipe


def check_kl_name(recipe: Recipe, key: str, metrics: Iterable[str], prefix: str = "") -> None:
    """UserError where a metric is the other samples' KL, which this recipe will not report.

    Args:
        key: of the recipe or sweep that names the metrics. prefix: of all metrics there.
    """
    settings = recipe.evaluate
    if "sentiment" not in settings.benchmarks:
        return
    temperature = settings.sampling_temperatures()[0]
    top_p = settings.sampling_top_p(temperature)
    reported = f"{prefix}sentiment/{sampled_kl_key(temperature, top_p)}"
    known = {f"{prefix}sentiment/{POLICY_REFERENCE}{end}" for end in ("", OFF_POLICY)}
    for metric in metrics:
        if metric in known - {reported}:
            own = "are" if reported.endswith(POLICY_REFERENCE) else "are not"
            raise UserError(
                f"{key}: metric {metric!r} is not reported: samples at temperature "
                f"{temperature:g}, top_p {top_p:g} {own} the policy's own; name {reported!r}"
            )
