"""What a merge found: rewards of every point with intervals, the front, a figure and a page."""

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.frontier import knee_point, pareto_front
from evaluation.intervals import mean_interval, rate_interval
from evaluation.report import MergePoint, MergeView, merge_figure, render_merge
from pipelines.evaluate import reward_span
from pipelines.merge.members import Member
from pipelines.merge.points import Point
from pipelines.merge.schema import Merge
from pipelines.recipe import FRONTIER, PAGE, POINT_SAMPLES, POINTS, RESULTS, Say, library_versions
from pipelines.storage import RunStore

Samples = Sequence[Mapping[str, Any]]


def publish(
    merge: Merge,
    members: Sequence[Member],
    points: Sequence[Point],
    samples: Mapping[Point, Samples],
    say: Say,
) -> str:
    """Write results.json, frontier.png, frontier.svg and the page; returns the page's path."""
    numbers = [_numbers(merge, point, samples[point]) for point in points]
    names = merge.reward_names()
    means = [[point["rewards"][name]["mean"] for name in names] for point in numbers]
    upwards = [True] * len(names)
    front, knee = pareto_front(means, upwards), knee_point(means, upwards)
    for place, found in enumerate(numbers):
        found |= {"on_front": place in front, "is_knee": place == knee}
    store = RunStore(merge.run_dir)
    labels = [member.label for member in members]
    store.write_json(
        RESULTS,
        {
            "models": [{"label": member.label, "place": member.place} for member in members],
            "rewards": [
                {"name": name, **section.model_dump(mode="json")}
                for name, section in zip(names, merge.rewards, strict=True)
            ],
            "generation": merge.generation.model_dump(mode="json"),
            "seed": merge.seed,
            "points": numbers,
            "versions": library_versions(),
        },
    )
    view = MergeView(
        title=store.root.rsplit("/", 1)[-1],
        models=labels,
        rewards=names,
        temperature=merge.generation.temperature,
        top_p=merge.generation.top_p,
        points=[
            MergePoint(
                name=found["name"],
                series=found["form"] or "one model",
                label=labels[point.alone] if point.alone is not None else point.label(),
                weights=found["weights"],
                rewards=found["rewards"],
                tokens=found["tokens"],
                on_front=found["on_front"],
                is_knee=found["is_knee"],
                samples=list(samples[point][:8]),
            )
            for point, found in zip(points, numbers, strict=True)
        ],
    )
    for kind in ("png", "svg"):
        store.write_bytes(f"{FRONTIER}.{kind}", merge_figure(view, kind))
    page = f"report/{PAGE}"
    store.write_bytes(page, render_merge(view).encode())
    for found in numbers:
        say(_line(found))
    return f"{store.root}/{page}"


def _numbers(merge: Merge, point: Point, samples: Samples) -> dict[str, Any]:
    """A point's rewards and lengths, with intervals over prompts."""
    prompts = [sample["prompt"] for sample in samples]
    rewards = {}
    for name, section in zip(merge.reward_names(), merge.rewards, strict=True):
        values = [float(sample["rewards"][name]) for sample in samples]
        span = reward_span(section)
        found = mean_interval(values, prompts) if span is None else rate_interval(
            values, prompts, span
        )  # fmt: skip
        rewards[name] = found.as_dict()
    columns = list(zip(*(sample["weights"] for sample in samples), strict=True))
    return {
        "name": point.name,
        "form": point.form,
        "weights_from": point.origin,
        "weights": [sum(column) / len(column) for column in columns],
        "num_prompts": len(set(prompts)),
        "num_samples": len(samples),
        "rewards": rewards,
        "tokens": mean_interval([float(s["tokens"]) for s in samples], prompts).as_dict(),
        "samples": f"{POINTS}/{point.name}/{POINT_SAMPLES}",
    }


def _line(found: dict[str, Any]) -> str:
    rewards = ", ".join(
        f"{name} {value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
        for name, value in found["rewards"].items()
    )
    return f"merge: {found['name']}: {rewards}" + (", on the front" if found["on_front"] else "")
