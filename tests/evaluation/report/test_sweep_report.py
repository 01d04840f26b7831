"""The sweep's page and figures: which are drawn, for which trials, and that the page holds them."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from report_views import own_part

from evaluation.equal_distance import Measured, compare_at
from evaluation.report.sweep import SweepView, TrialView, render_sweep
from evaluation.report.sweep_png import sweep_figures

REWARD, KL, ZEROS = (
    "evaluation/sentiment/reward/after",
    "evaluation/sentiment/kl/policy_reference",
    "train/masks/reward_zero_fraction",
)


CHARTS = (
    "frontier",
    "evaluation-sentiment-reward-after-over-objective-beta",
    "evaluation-sentiment-kl-policy-reference-over-objective-beta",
    "train-masks-reward-zero-fraction-over-objective-beta",
)


def rows_of(page: str) -> list[int]:
    """The trials of the table, from above."""
    return [int(number) for number in re.findall(r'<tr id="trial-(\d+)"', page)]


def view(objectives: list[tuple[str, str]], series_key: str | None) -> SweepView:
    """Six trials of two methods; one diverged, and only one method has a mask."""
    trials = []
    for number, (method, beta) in enumerate(
        (m, b) for m in ("one.yaml", "two") for b in (0.1, 0.5, 2.0)
    ):
        metrics = {
            REWARD: 0.9 - 0.2 * number,
            KL: 10.0 - number,
            **({ZEROS: 0.1 * number} if method == "two" else {}),
        }
        state = "diverged" if number == 5 else "finished"
        point = {"recipe": method, "objective.beta": beta}
        trials.append(
            TrialView(
                number,
                state,
                "loss nan" * (number == 5),
                point,
                metrics if number < 5 else {},
                1.0,
                number < 3,
                number == 1,
            )
        )
    return SweepView(
        "a sweep", ["recipe", "objective.beta"], series_key, objectives, trials, "the knee", 1
    )


@pytest.mark.parametrize(
    ("objectives", "series_key", "expected"),
    [
        (
            [(REWARD, "max"), (KL, "min")],
            "recipe",
            {
                "frontier-by-recipe",
                "frontier-by-objective-beta",
                "frontier-by-train-masks-reward-zero-fraction",
            },
        ),
        (
            [(REWARD, "max"), (KL, "min")],
            None,
            {"frontier-by-objective-beta", "frontier-by-train-masks-reward-zero-fraction"},
        ),
        ([(REWARD, "max")], "recipe", {"evaluation-sentiment-reward-after-against-objective-beta"}),
    ],
)
def test_figures_fit_what_was_searched(
    objectives: list[tuple[str, str]], series_key: str | None, expected: set[str]
) -> None:
    shown = view(objectives, series_key)
    figures = sweep_figures(shown)
    assert set(figures) == expected | {"sparsity-against-beta", "parallel-coordinates"}
    assert all(png.startswith(b"\x89PNG") for png in figures.values())
    page = own_part(render_sweep(shown))
    assert rows_of(page) == [0, 1, 2, 3, 4, 5], "best first, what has no value last"
    assert '<tr id="trial-1" class="best front">' in page
    assert "diverged: loss nan" in page


def test_nothing_finished_is_a_page_without_figures() -> None:
    empty = SweepView(
        "a sweep",
        ["objective.beta"],
        None,
        [(REWARD, "max")],
        view([(REWARD, "max")], None).trials[5:],
        "",
        3,
    )
    assert sweep_figures(empty) == {}
    assert "3 seeds" in render_sweep(empty)


def test_the_best_of_what_should_be_small_is_first() -> None:
    page = own_part(render_sweep(view([(KL, "min"), (REWARD, "max")], None)))
    assert rows_of(page) == [4, 3, 2, 1, 0, 5], "what has no value last"


def series(shown: SweepView, figure: str) -> dict[str, dict[str, Any]]:
    """The series of a figure of the page, by their names."""
    page = own_part(render_sweep(shown))
    records = [
        json.loads(text)
        for text in re.findall(
            r'<script type="application/json" class="figure">(.*?)</script>', page
        )
    ]
    (found,) = [record for record in records if record["name"] == figure]
    return {one["name"]: one for one in found["series"]}


@pytest.mark.parametrize(
    "objectives", [[(REWARD, "max"), (KL, "min")], [(KL, "min"), (REWARD, "max")]]
)
def test_the_front_is_drawn_and_every_point_says_what_it_is(
    objectives: list[tuple[str, str]],
) -> None:
    """Reward upwards over KL, whichever was named first; trials 0 to 2 are the front."""
    found = series(view(objectives, "recipe"), "frontier")
    assert found.keys() == {"Pareto front", "one", "two", "best.yaml"}
    assert found["Pareto front"]["x"] == [8, 9, 10]
    assert found["Pareto front"]["y"] == [0.5, 0.7, 0.9]
    assert (found["best.yaml"]["x"], found["best.yaml"]["symbol"]) == ([9], "star")
    assert found["one"]["labels"] == ["2", "0.5", "0.1"], "their betas, in the order of KL"
    assert found["one"]["links"] == ["#trial-2", "#trial-1", "#trial-0"]
    lines = found["one"]["hover"][1].split("\n")
    assert lines[:3] == ["trial 1, on the front", "recipe = one", "objective.beta = 0.5"]
    assert set(lines[3:]) == {"sentiment/reward/after 0.7", "sentiment/kl/policy_reference 9"}
    assert "on the front" not in found["two"]["hover"][0]


def test_a_method_has_one_colour_whatever_became_of_others() -> None:
    """In every figure and in the table; also where the first method's trials all diverged."""
    shown = view([(REWARD, "max"), (KL, "min")], "recipe")
    of_all = {series(shown, name)["two"]["colour"] for name in CHARTS}
    lost = [
        replace(t, status="diverged") if t.point["recipe"] != "two" else t for t in shown.trials
    ]
    of_all.add(series(replace(shown, trials=lost), "frontier")["two"]["colour"])
    (colour,) = of_all
    assert colour != series(shown, "frontier")["one"]["colour"]
    assert f'style="--run:{colour}"' in render_sweep(shown)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/one.yaml", "b/two.yaml", "hh-dpo"], ["one", "two", "hh-dpo"]),
        (["runs/dpo/config.yaml", "runs/mapo/config.yaml"], ["dpo/config", "mapo/config"]),
        (["x/a/config.yaml", "y/a/config.yaml", "one"], ["x/a/config", "y/a/config", "one"]),
        (["one.yaml", "one"], ["one.yaml", "one"]),
    ],
)
def test_two_recipes_are_never_one_method(paths: list[str], names: list[str]) -> None:
    """However their files are called: in the figure, in its hover and in the table."""
    shown = view([(REWARD, "max"), (KL, "min")], "recipe")
    trials = [
        replace(trial, number=n, status="finished", metrics=shown.trials[n].metrics)
        for n, trial in enumerate(shown.trials[: len(paths)])
    ]
    trials = [
        replace(trial, point={**trial.point, "recipe": path})
        for trial, path in zip(trials, paths, strict=True)
    ]
    found = series(replace(shown, trials=trials), "frontier")
    assert set(names) == found.keys() - {"Pareto front", "best.yaml"}
    assert f"recipe = {names[0]}" in found[names[0]]["hover"][0]
    page = own_part(render_sweep(replace(shown, trials=trials)))
    assert all(f'<td class="n">{name}</td>' in page for name in names)


def test_intervals_are_drawn_where_there_are_some() -> None:
    shown = view([(REWARD, "max"), (KL, "min")], "recipe")
    first = shown.trials[0]
    known = {**first.metrics, f"{REWARD}/low": 0.8, f"{REWARD}/high": 1.2, f"{KL}/std": 2.0}
    trials = [replace(first, metrics=known), *shown.trials[1:]]
    one = series(replace(shown, trials=trials), "frontier")["one"]
    assert (one["y_low"], one["y_high"]) == ([0.5, 0.7, 0.8], [0.5, 0.7, 1.2])
    assert (one["x_low"], one["x_high"]) == ([8, 9, 8], [8, 9, 12])
    assert "sentiment/reward/after 0.9 [0.8, 1.2]" in one["hover"][2]


@pytest.mark.parametrize(
    ("keys", "sources", "said"),
    [
        (["objective.beta"], ["a/reviews.jsonl"], "Search of objective.beta on reviews.jsonl"),
        (["a", "b", "c"], [], "Search of a, b and c"),
        (["a", "b"], ["x/one.jsonl", "two.jsonl"], "Search of a and b on one.jsonl, two.jsonl"),
    ],
)
def test_the_title_says_what_was_searched_on_what(
    keys: list[str], sources: list[str], said: str
) -> None:
    shown = replace(view([(REWARD, "max")], None), keys=keys, sources=sources)
    assert f"<h1>{said}</h1>" in render_sweep(shown)


def test_links_lead_to_what_lies_beside_the_page() -> None:
    """Of a page without its files there are none but those within it."""
    shown = view([(REWARD, "max")], "recipe")
    trials = [
        replace(t, folder=f"trials/{t.number}-x", runs=[f"trials/{t.number}-x"])
        for t in shown.trials
    ]
    page = own_part(render_sweep(replace(shown, trials=trials, has_files=True)))
    links = set(re.findall(r'href="([^"#]+)"', page))
    assert links == {"../best.yaml", "../trials.csv", "../pareto.json"} | {
        f"../trials/{n}-x/{file}" for n in range(6) for file in ("", "config.yaml")
    }
    assert not re.findall(r'href="[^"#]', own_part(render_sweep(shown)))


def test_methods_at_equal_distance() -> None:
    """By hand: at 8 "one" has the gain of its trial 2; "two" lies at 6 and 7 alone."""
    shown = view([(REWARD, "max"), (KL, "min")], "recipe")
    measured = {
        name: [Measured(t.metrics[KL], t.metrics[REWARD]) for t in trials]
        for name, trials in shown.series()
    }
    page = own_part(render_sweep(shown.with_levels(compare_at(measured, [6.5, 8.0]))))
    table = page.split('id="equal"')[1].split("</table>")[0]
    cells = re.findall(r'<td class="n">(.*?)</td>', table)
    assert cells == ["not reached", "0.200", "0.500", "not reached"]
    assert "No intervals: these metrics are not kept prompt by prompt" in table
    assert 'id="equal"' not in render_sweep(shown)
