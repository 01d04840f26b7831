"""The sweep's page and figures: which are drawn, for which trials, and that the page holds them."""

import re

import pytest

from evaluation.report.sweep import SweepView, TrialView, render_sweep, sweep_figures

REWARD, KL, ZEROS = (
    "evaluation/sentiment/reward/after",
    "evaluation/sentiment/kl/policy_reference",
    "train/masks/reward_zero_fraction",
)


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
    page = render_sweep(shown)
    assert page.count("<svg") == len(figures)
    numbers = [int(n) for n in re.findall(r'<tr class="[^"]*"><td class="n">(\d)</td>', page)]
    assert numbers == [0, 1, 2, 3, 4, 5], "best first, what has no value last"
    assert re.search(r'<tr class="best front"><td class="n">1</td>', page)
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
    page = render_sweep(view([(KL, "min"), (REWARD, "max")], None))
    numbers = re.findall(r'<tr class="[^"]*"><td class="n">(\d)</td>', page)
    assert numbers == ["4", "3", "2", "1", "0", "5"], "what has no value last"
