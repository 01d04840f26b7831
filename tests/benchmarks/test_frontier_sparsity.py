"""benchmarks/frontier_sparsity.py: which review serves what, what is trained next, that trials are
the product's, and the tables.
"""

import itertools
import json
import lzma
import math
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkout import ROOT
from runs import run_here

from pipelines.commands.quickstart_world import TRAIN_OPENINGS, continuation, opening
from pipelines.commands.stages import PREPARE, TRAIN
from pipelines.storage.store import RunStore
from pipelines.train.metrics import read_metrics

sys.path.append(str(ROOT / "benchmarks"))

import frontier_data as data
import frontier_engine as engine
import frontier_schedule as scheduling
import frontier_settings as settings
import frontier_sparsity as command
import frontier_tables as tables

Trial = settings.Trial
READY = {(task, seed) for task, seeds in settings.SEEDS.items() for seed in seeds}


def record(
    trial: Trial, kl: float, reward: float, zeros: float | None = None, prompts: int = 4
) -> dict[str, Any]:
    """A trial's line, with values by prompt that have these means."""
    spread = np.linspace(-0.1, 0.1, prompts)
    point = {"step": 9, "kl": kl, "reward": reward, "gain": reward - 0.4, "accuracy": reward}
    return {
        **vars(trial), "failed": None, "warnings": [],
        "training_zeros": {"reward": zeros, "kl": zeros},
        "points": [{**point, "win/start": 0.5, "win/chosen": 0.3}],
        "by_prompt": {"reward": list(reward + spread), "kl": list(kl * (1 + spread))},
    }  # fmt: skip


# Nats at beta 1, by method; KL falls with beta as in the runs of docs/results.md. The reward of the
# worlds below is a method's own plus a tenth for each doubling of the KL.
NATS_AT_ONE = {name: 1.0 + 0.3 * at for at, name in enumerate(settings.BY_NAME)}
BEST = {"mapo": 0.05, "tdpo2": 0.01, "sparsepo-common-0.9": 0.08, "entropy-0.2": 0.06,
        "mapo-0.3": 0.02, "random-0.75": -0.05, "partition": 0.2}  # fmt: skip


def world(trial: Trial) -> dict[str, Any]:
    kl = NATS_AT_ONE[trial.setting] * trial.beta**-0.7
    return record(trial, kl, 0.5 + BEST.get(trial.setting, 0.0) + 0.1 * math.log2(kl))


Records = list[dict[str, Any]]


def simulated(
    result: Callable[[Trial], dict[str, Any]], begun: Sequence[dict[str, Any]] = (), most: int = 999
) -> Records:
    """All records of a schedule, three trials at a time."""
    found, running = list(begun), []
    schedule = scheduling.Schedule(found)
    for _ in range(most):
        while len(running) < 3 and (trial := schedule.next(READY)) is not None:
            running.append(trial)
        if not running:
            break
        found.append(result(running.pop(0)))
        schedule.add(found[-1])
    return found


@pytest.fixture(scope="module")
def whole() -> Records:
    return simulated(world)


def test_pilot_comes_first_then_the_fronts_seed_by_seed_with_hh_between(whole: Records) -> None:
    found = whole
    trials = [Trial.of(r) for r in found]
    assert len(set(trials)) == len(trials)
    imdb = [t for t in trials if t.task == "imdb"]
    assert scheduling.Schedule(found).missing() == []
    assert {t.setting for t in imdb if t.seed == 0} == set(settings.BY_NAME)
    # Three at a time: what the pilot's last trials will ask for is not known before they end.
    pilot_ends = max(i for i, t in enumerate(trials) if t.task == "imdb" and t.seed == 0)
    before = [t for t in trials[:pilot_ends] if t.task == "hh" or t.seed > 0]
    assert len(before) < 12 and {t.setting for t in before if t.seed} <= {*settings.ALWAYS}
    order = [t.seed for t in imdb if t.seed and t.setting == "entropy-0.2"]
    assert order == sorted(order) and set(order) == {1, 2, 3, 4}
    after = trials[pilot_ends:][:48]
    assert 10 <= sum(t.task == "hh" for t in after) <= 14


def test_every_front_has_trials_on_both_sides_of_what_is_compared(whole: Records) -> None:
    for name in scheduling.Schedule(whole).methods():
        for seed in settings.SEEDS["imdb"]:
            own = [r for r in scheduling.of_setting(whole, name) if r["seed"] == seed]
            kl = [r["points"][-1]["kl"] for r in own]
            assert min(kl) <= 1 and max(kl) >= 8, name


def test_methods_of_the_fronts_by_hand(whole: Records) -> None:
    """Scores are what BEST says, since every reward is the same line in log2 KL: MaPO is the best
    dense method, the most sparse SparsePO and entropy the best two sparse. Baselines are never
    chosen, whatever they reach.
    """
    assert scheduling.Schedule(whole).methods() == [
        "dpo", "tdpo1", "random-0.75", "mapo", "sparsepo-common-0.9", "entropy-0.2",
    ]  # fmt: skip
    worse = simulated(lambda t: world(t) if t.setting != "mapo" else record(t, 3.0, 0.9))
    assert "mapo" not in scheduling.Schedule(worse).methods()  # it reaches no two levels
    assert "tdpo2" in scheduling.Schedule(worse).methods()


def test_betas_of_pilot_and_front_by_hand() -> None:
    """(KL, beta): 5 nats at 0.1 and 0.7 at 2 lack the far end, a fourth of the smallest beta, and
    have a gap of 7 between them, sqrt(0.1 * 2). What has been tried is not asked for again.
    """
    assert scheduling.further_betas([(0.7, 2.0), (5.0, 0.1)], {0.1, 2.0}) == [0.025, 0.45]
    assert scheduling.further_betas([(0.7, 2.0), (5.0, 0.1)], {0.025, 0.1, 2.0}) == [0.45]
    assert scheduling.further_betas([(0.7, 2.0), (2.0, 0.4), (6.0, 0.1), (12.0, 0.02)], set()) == []
    assert scheduling.further_betas([(2.0, 1.0), (3.0, 0.5)], {1.0, 0.5}) == [4.0, 0.12]
    six = {1.0, 0.5, 0.2, 0.1, 0.05, 0.02}
    assert scheduling.further_betas([(2.0, 1.0)], six) == []
    ends = [(0.3, 9.0), (0.8, 3.0), (2.0, 1.0), (8.5, 0.2), (30.0, 0.1)]
    assert scheduling.front_betas(ends) == [3.0, 1.0, 0.2]
    assert scheduling.front_betas(ends[2:3]) == [1.0]


def test_a_lost_trial_ends_no_schedule_and_a_dropped_one_is_missing() -> None:
    """All of TDPO2's diverge: its pilot ends after its first betas. What ended in an error counts
    as missing, and the next command tries it again.
    """

    def result(trial: Trial) -> dict[str, Any]:
        lost = {"failed": "the loss is not finite", "points": []}
        return world(trial) | (lost if trial.setting == "tdpo2" else {})

    found = simulated(result)
    assert {r["beta"] for r in found if r["setting"] == "tdpo2"} == {0.005, 0.05, 0.5}
    assert scheduling.Schedule(found).missing() == []
    schedule = scheduling.Schedule([])
    first = schedule.next(READY)
    assert first is not None
    schedule.drop(first)
    assert schedule.next(READY) != first and first in schedule.missing()
    assert scheduling.Schedule([]).next(READY) == first


def test_nothing_is_given_before_its_pairs_are_prepared() -> None:
    schedule = scheduling.Schedule([])
    assert schedule.next(set()) is None
    found = schedule.next({("hh", 0)})
    assert found is not None and (found.task, found.seed) == ("hh", 0)


def test_a_command_that_was_killed_goes_on_to_the_same_end(whole: Records) -> None:
    part = simulated(world, most=70)
    assert len(part) == 70
    found = simulated(world, part)
    assert {Trial.of(r) for r in found} == {Trial.of(r) for r in whole}
    assert len(found) == len({Trial.of(r) for r in found})


def test_every_setting_is_a_recipe(tmp_path: Path) -> None:
    plan = settings.Plan("/model", str(tmp_path), str(tmp_path))
    for task, names in (("imdb", settings.BY_NAME), ("hh", settings.HH_BETAS)):
        for name in names:
            setting = settings.BY_NAME[name]
            recipe = data.Folder(plan, task).recipe(0, **setting.sections(0.5, 3))
            assert recipe.objective.name == setting.objective["name"]
            assert recipe.objective.model_dump()["beta"] == 0.5
            assert recipe.stored_features() == set()  # no reference stage is run
            assert recipe.mask.model_dump().get("seed", 3) == 3
    assert settings.BY_NAME["partition"].mask["parts"] == settings.IMDB.epochs


# Tables


def test_rewards_at_a_distance_and_their_differences_by_hand() -> None:
    """DPO's two trials of seed s: (1, 0.5 + s/100) and (9, 0.7 + s/100). At 2, 4 and 8 nats an
    eighth, three and seven eighths of the way. MaPO is higher by 0.01, 0.02, 0.03 on three seeds:
    mean 0.02, half of the interval 4.3027 * 0.01 / sqrt 3. It has a third trial at (0.5, 0.3).
    """
    found = []
    for seed in range(3):
        for beta, kl, reward in ((1.0, 1.0, 0.5), (0.1, 9.0, 0.7)):
            base = reward + seed / 100
            found.append(record(Trial("imdb", "dpo", beta, seed), kl, base))
            found.append(
                record(Trial("imdb", "mapo", beta, seed), kl, base + (seed + 1) / 100, 0.0)
            )
    numbers = tables.fronts(found)
    assert numbers["dpo"]["reward"]["2 nats"]["mean"] == pytest.approx(0.535)
    assert numbers["dpo"]["reward"]["8 nats"]["mean"] == pytest.approx(0.685)
    less = numbers["mapo"]["less_dpo"]["4 nats"]
    assert less["mean"] == pytest.approx(0.02)
    assert less["high"] - less["mean"] == pytest.approx(4.302653 * 0.01 / math.sqrt(3), rel=1e-5)
    assert numbers["mapo"]["less_dpo_unseen"]["4 nats"]["mean"] == pytest.approx(0.025)
    assert numbers["mapo"]["first"]["4 nats"] == [3, 3]
    assert numbers["dpo"]["first"]["4 nats"] == [0, 3]
    ranked = tables.ranking(numbers)
    at_four = [line for line in ranked.splitlines() if "4 nats" in line]
    assert "mapo" in at_four[0] and "dpo" in at_four[1] and "3 of 3" in at_four[0]
    short = [r for r in found if Trial.of(r) != Trial("imdb", "mapo", 0.1, 2)]
    assert tables.fronts(short)["mapo"]["seeds"] == [0, 1]  # a seed counts with all its trials
    near = [r | {"points": [{**r["points"][-1], "kl": min(r["points"][-1]["kl"], 5.0)}]}
            if Trial.of(r) == Trial("imdb", "mapo", 0.1, 1) else r for r in found]  # fmt: skip
    assert tables.fronts(near)["mapo"]["reward"]["8 nats"] is None
    assert "`mapo` | not reached on every seed" in tables.ranking(tables.fronts(near))


def test_intervals_of_the_pilot_are_over_prompts() -> None:
    """Two trials whose prompts all have the same distance, 1 and 9 nats, and rewards with a spread:
    at 1 nat the drawn means are those of the first trial's rewards alone.
    """
    rewards = np.random.default_rng(0).normal(0.5, 0.2, 400)
    found = []
    for beta, kl, more in ((1.0, 1.0, 0.0), (0.1, 9.0, 0.2)):
        one = record(Trial("imdb", "dpo", beta, 0), kl, float(rewards.mean()) + more)
        one["by_prompt"] = {"reward": list(rewards + more), "kl": [kl] * 400}
        found.append(one)
    text, numbers = tables.pilot_table(found)
    at = numbers["dpo"]["reward"]["1 nats"]
    error = rewards.std() / math.sqrt(400)
    assert at["gain"] == pytest.approx(rewards.mean())
    assert at["high"] - at["low"] == pytest.approx(2 * 1.96 * error, rel=0.08)
    five = numbers["dpo"]["reward"]["8 nats"]["gain"]
    assert five == pytest.approx(rewards.mean() + 0.2 * 7 / 8)
    assert numbers["dpo"]["kl"] == [1.0, 9.0]
    assert "| `dpo` |" in text


@pytest.mark.slow
def test_tables_name_what_is_missing(
    whole: Records, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = whole[:150]
    lines = tmp_path / "lines.jsonl"
    about = {"about": "judge", "accuracy": {"mean": 0.61, "low": 0.58, "high": 0.64},
             "tried_pairs": 1000, "pairs": 2300}  # fmt: skip
    lines.write_text("".join(json.dumps(r) + "\n" for r in [about, *found]))
    figure, numbers = tmp_path / "figure.png", tmp_path / "numbers.json"
    tables.main([str(lines), "--figure", str(figure), "--json", str(numbers)])
    said = capsys.readouterr().out
    kept = json.loads(numbers.read_text())
    wanted = {Trial.of(r).name for r in whole} - {Trial.of(r).name for r in found}
    assert set(kept["missing"]) == wanted and wanted
    assert f"Missing, {len(wanted)} trials" in said
    assert "accuracy 0.610 [0.580, 0.640] on 1,000 held-out pairs" in said
    assert set(kept["pilot"]) == set(settings.BY_NAME)
    assert figure.read_bytes()[:4] == b"\x89PNG"
    lines.write_text(json.dumps(about) + "\n")
    with pytest.raises(SystemExit, match="no trial"):
        tables.main([str(lines)])


# Data and trials


def review(rng: random.Random, number: int) -> dict[str, Any]:
    label = number % 2
    word = ("dreadful", "wonderful")[label]
    body = " ".join(f"{word} {continuation(rng).strip()}" for _ in range(4))
    text = f"Film {number} , {opening(rng, TRAIN_OPENINGS)} it begins . {body}"
    return {"text": text, "label": label, "id": f"review/{number}"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files as the benchmark reads them, one of them packed."""
    folder, rng = tmp_path_factory.mktemp("data"), random.Random(0)
    reviews = [review(rng, number) for number in range(140)]
    # The pair's first review is a prompt's by its id; its second is nobody's.
    pairs = [
        {
            "prompt": "A film", "chosen": f"{continuation(rng)} wonderful",
            "rejected": f"{continuation(rng)} dreadful",
            "chosen_reward": 9, "rejected_reward": 2, "chosen_id": f"review/{number}",
            "rejected_id": f"other/{number}",
        }
        for number in range(140)
    ]  # fmt: skip
    for number in range(20):  # known by their words alone
        known = reviews[number]
        stars = 9 if known["label"] else 2
        pairs[number] |= {"prompt": "", "rejected": known["text"], "rejected_reward": stars}
    files = {"imdb_reviews": reviews, "imdb_prefix_pairs": pairs}
    for at, name in enumerate((
        "hh_helpful_w2sg", "hh_helpful_base_test", "hh_helpful_rejection_sampled_test",
        "hh_helpful_online_test",
    )):  # fmt: skip
        files[name] = [
            {
                "prompt": f"\n\nHuman: {opening(rng, TRAIN_OPENINGS)} {at}{n}?\n\nAssistant:",
                "chosen": continuation(rng), "rejected": continuation(rng),
            }
            for n in range(24)
        ]  # fmt: skip
    files["hh_helpful_online_test"][0]["prompt"] = files["hh_helpful_w2sg"][0]["prompt"]
    for name, rows in files.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        path = folder / f"{name}.jsonl"
        if name == "imdb_prefix_pairs":
            Path(f"{path}.xz").write_bytes(lzma.compress(text.encode()))
        else:
            path.write_text(text)
    return folder


def test_a_review_serves_one_purpose(source: Path) -> None:
    plan = settings.Plan("/m", str(source), "/w", settings.SMALL_IMDB, settings.SMALL_HH)
    reviews = data.Reviews.of(plan)
    parts = [reviews.train, reviews.held_out, reviews.others]
    assert list(map(len, parts)) == [40, 16, 84]
    for one, other in itertools.combinations(parts, 2):
        assert not {r["id"] for r in one} & {r["id"] for r in other}
        begins = [{data.prompt_of(r["text"]) for r in part} for part in (one, other)]
        assert not begins[0] & begins[1]
    tried = [*reviews.train, *reviews.held_out]
    further = data._paired_reviews(plan, tried)
    # Second reviews of all pairs, and the first of those that are no prompt's.
    asked = {r["id"] for r in tried}
    known = sum(f"review/{number}" in asked for number in range(20))
    assert known and len(further) == 140 + 84 - known
    shards = [data.drawn_prompts(replace(plan, shards=3), shard) for shard in range(3)]
    drawn = [prompt for shard in shards for _, prompt, _ in shard]
    assert sorted(drawn) == sorted(data.prompt_of(r["text"]) for r in tried)
    with pytest.raises(SystemExit, match="none for the scorer"):
        data.Reviews.of(replace(plan, imdb=replace(plan.imdb, prompts=130)))


def test_the_reward_model_sees_no_prompt_of_a_policy(source: Path) -> None:
    plan = settings.Plan("/m", str(source), "/w")
    kept = data.judge_pairs(plan)
    taken = {
        row["prompt"]
        for name in ("hh_helpful_w2sg", "hh_helpful_base_test")
        for row in data.rows_of(str(source), name)
    }
    assert len(kept) == 47 and not {row["prompt"] for row in kept} & taken


def test_the_scorer_knows_reviews_that_it_has_not_seen(source: Path) -> None:
    """A word in each review gives its label away; the accuracy is of words 9 to 40."""
    plan = settings.Plan("/m", str(source), "/w", settings.SMALL_IMDB, settings.SMALL_HH)
    scorer = data.Sentiment.fitted(plan)
    reviews = data.Reviews.of(plan)
    tried = [*reviews.train, *reviews.held_out]
    said = scorer([" ".join(r["text"].split()[8:40]) for r in tried])
    right = [(p > 0.5) == bool(r["label"]) for p, r in zip(said, tried, strict=True)]
    assert scorer.about["accuracy"]["mean"] == pytest.approx(np.mean(right))
    assert np.mean(right) > 0.8
    assert scorer.about["tried_reviews"] == 56
    good, bad = scorer(["it was wonderful", "it was dreadful"])
    assert 0 <= bad < 0.5 < good <= 1


def one_engine(source: Path, model: Path, work: Path) -> engine.Engine:
    plan = settings.Plan(
        str(model), str(source), str(work), settings.SMALL_IMDB, settings.SMALL_HH, shards=2
    )
    return engine.Engine(plan)


@pytest.mark.slow
def test_a_process_that_dies_is_another_ones_work(
    source: Path, model_dir: Path, tmp_path: Path
) -> None:
    """An error is told and the process stays; one that ended is started again and works."""
    plan = one_engine(source, model_dir, tmp_path / "work").plan
    processes = command.Processes(plan, jobs=1, gpus=0, threads=1)

    def result(step: command.Step) -> tuple[Any, str | None]:
        assert processes.free() == [0]
        processes.give(0, step)
        assert processes.free() == []
        ((done, found, error),) = processes.results(120)
        assert done == step
        return found, error

    try:
        found, error = result(command.Step("prepare", ("imdb", 0)))  # there are no files yet
        assert found is None and "pairs-0-train.jsonl" in str(error)
        processes._processes[0].kill()
        assert result(command.Step("fit_scorer", ())) == (None, "its process ended")
        found, error = result(command.Step("fit_scorer", ()))
        assert error is None and found["tried_reviews"] == 56
    finally:
        processes.close()
    assert not processes._processes[0].is_alive()


@pytest.mark.slow
def test_the_smallest_form_in_one_process(
    source: Path, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command to its tables; a trial is the product's training step by step, and one engine's
    second trial is what a fresh one makes of it.
    """
    out, work = tmp_path / "lines.jsonl", tmp_path / "work"
    names = "dpo,sparsepo-common-0.75"
    given = ["--model", model_dir, "--data", source, "--work", work, "--out", out]
    command.main([*map(str, given), "--small", "--trials", "5", "--settings", names])
    found = command.read_lines(out)
    assert [r["about"] for r in found if "about" in r and r["about"] != "pairs"] == [
        "scorer", "judge", "start", "hh",
    ]  # fmt: skip
    trials = scheduling.trials_of(found)
    assert [(t["setting"], t["beta"]) for t in trials] == [
        ("dpo", 0.06), ("dpo", 0.3), ("dpo", 1.5),
        ("sparsepo-common-0.75", 0.15), ("sparsepo-common-0.75", 0.7),
    ]  # fmt: skip
    sparse = trials[-1]
    assert len(sparse["by_prompt"]["reward"]) == settings.SMALL_IMDB.held_out
    point = sparse["points"][-1]
    assert point["reward"] == pytest.approx(np.mean(sparse["by_prompt"]["reward"]), abs=1e-4)
    assert point["kl"] == pytest.approx(np.mean(sparse["by_prompt"]["kl"]), abs=1e-4)
    start = [
        score for row in data.rows_of(str(work / "imdb"), "held_out") for score in row["scores"]
    ]
    assert point["gain"] == pytest.approx(point["reward"] - np.mean(start))
    assert 0.2 < sparse["training_zeros"]["reward"] <= 1 and trials[0]["zeros"]["reward"] is None
    # By the product's own stages, into another run directory.
    one = one_engine(source, model_dir, work)
    sections = settings.BY_NAME[sparse["setting"]].sections(sparse["beta"], 0)
    recipe = one.folders["imdb"].recipe(0, "product", **sections)
    run_here(recipe, [PREPARE, TRAIN])
    lines = list(read_metrics(RunStore(f"{recipe.run_dir}/train")))
    losses = [line["loss"] for line in lines if "kind" not in line]
    assert len(losses) == 6 and sparse["losses"] == pytest.approx(losses, abs=2e-5)
    (*_, told) = (line for line in lines if line.get("kind") == "validation")
    assert point["accuracy"] == pytest.approx(told["validation/rewards/accuracies"])
    fresh = one.trial(Trial.of(sparse))
    assert fresh["losses"] == sparse["losses"] and fresh["by_prompt"] == sparse["by_prompt"]
    # HH, with its judge.
    found_hh = one.trial(Trial("hh", "dpo", 0.2, 0))
    assert 0 <= found_hh["points"][-1]["win/chosen"] <= 1 and found_hh["points"][-1]["kl"] >= 0
    with out.open("a") as lines_of_out:
        lines_of_out.write(json.dumps(found_hh) + "\n")
    tables.main([str(out)])
    said = capsys.readouterr().out
    assert "| `sparsepo-common-0.75` |" in said and "Missing, " in said
    assert scheduling.Schedule(command.read_lines(out)).missing()
