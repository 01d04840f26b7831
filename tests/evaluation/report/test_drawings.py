"""What the figures show of a run's numbers."""

from dataclasses import replace

import pytest
from report_views import view

from evaluation.report.charts import run_styles
from evaluation.report.drawings import (
    MOST_POINTS,
    curves,
    frontier,
    history,
    running_mean,
    thinned,
    weight_profile,
)

STYLES = run_styles(["one"])


def test_long_curves_keep_their_peaks() -> None:
    """Of 50,000 points one is high and one low; both are drawn, in order, with few others."""
    y = [float(i % 7) for i in range(50_000)]
    y[12_345], y[40_001] = 1e6, -1e6
    x, kept = thinned(range(50_000), y)
    assert len(x) <= MOST_POINTS and x == sorted(x)
    assert (12_345, 1e6) in zip(x, kept, strict=True) and (40_001, -1e6) in zip(
        x, kept, strict=True
    )
    assert all(y[at] == value for at, value in zip(x, kept, strict=True))
    assert thinned([1, 2], [3.0, 4.0]) == ([1, 2], [3.0, 4.0])


def test_the_mean_runs_over_a_tenth() -> None:
    assert running_mean([1.0, 3.0, 8.0]) == [1.0, 3.0, 8.0]
    found = running_mean([float(i) for i in range(20)])
    assert found[:3] == [0.0, 0.5, 1.5] and found[-1] == 18.5


def test_curves_leave_out_records_that_are_no_steps() -> None:
    metrics = [{"step": 1, "loss": 0.5}, {"step": 1, "kind": "warning", "loss": 9.0}]
    (loss,) = curves([replace(view("one"), metrics=metrics)], STYLES)
    assert [list(s.y) for s in loss.series] == [[0.5], [0.5]] and loss.csv == "curves.csv"
    assert loss.name == "curve-loss"


def test_a_checkpoint_alone_is_no_curve() -> None:
    rows = [{"step": s, "sentiment/reward/after": s / 10, "passed": None} for s in (2, 4)]
    rows += [{"step": None, "sentiment/reward/after": 9.0}]
    (found,) = history([replace(view("one"), history=rows)], STYLES)
    assert list(found.series[0].y) == [0.2, 0.4]
    assert history([replace(view("one"), history=rows[:1])], STYLES) == []


def test_the_frontier_has_every_temperature_and_the_start() -> None:
    shown = view("one")
    sentiment = shown.results["sentiment"]
    cold = {f"temperature=0.5/{key}": value for key, value in sentiment.items()}
    results = {"sentiment": {**sentiment, **cold, "temperature=0.5/temperature": 0.5}}
    figure = frontier([replace(shown, results=results)], STYLES)
    assert figure is not None
    assert [s.name for s in figure.series] == [
        "one",
        "one, T=0.5 (other samples)",
        "starting model",
    ]
    assert figure.series[0].style == figure.series[1].style == STYLES["one"]
    start = figure.series[-1]
    assert (start.x, start.y, start.y_low) == ([0.0], [0.25], [0.125])
    assert frontier([replace(shown, results={})], STYLES) is None


@pytest.mark.parametrize(
    ("kl", "names"), [(0.5, ["reward and KL mask"]), (0.25, ["reward mask", "KL mask"])]
)
def test_masks_that_are_one_have_one_line(kl: float, names: list[str]) -> None:
    shown = view("one")
    masks = {
        **shown.results["masks"],
        "reward_mask/by_position": [{"mean_weight": 0.5}] * 10,
        "kl_mask/by_position": [{"mean_weight": kl}] * 10,
    }
    figure = weight_profile(replace(shown, results={"masks": masks}), 3)
    assert figure is not None and figure.name == "profile-3"
    assert [s.name for s in figure.series] == names
    assert list(figure.series[0].x) == [5.0 + 10 * i for i in range(10)]
