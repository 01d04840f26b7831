"""The worlds of benchmarks/worlds.py: dials, oracle weights, methods, and that they are trained and
measured as the product does it.
"""

import json
import math
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from checkout import ROOT
from runs import train_here

from pipelines.commands import quickstart
from pipelines.commands.quickstart_world import SENTIMENT_WORDS, continuation
from pipelines.commands.stages import EVALUATE, PREPARE, REFERENCE
from pipelines.storage.store import RunStore
from pipelines.train.metrics import read_metrics
from sparsepo.masks.declarations import MASKS
from sparsepo.objectives.declarations import OBJECTIVES

sys.path.append(str(ROOT / "benchmarks"))

import world_comparison as comparison
import world_engine as engine
import world_measure
import world_settings as settings
import worlds

BY_NAME = {world.name: world for world in settings.WORLDS}


def words_of(world: str, count: int = 400) -> tuple[float, float]:
    """Sentiment words as a share of all, marks included; and words of a continuation."""
    rng, dials = random.Random(0), BY_NAME[world].dials
    texts = [continuation(rng, dials).split() for _ in range(count)]
    number = sum(map(len, texts))
    return sum(w in SENTIMENT_WORDS for text in texts for w in text) / number, number / count


def test_dials_move_what_they_are_called() -> None:
    """Words without sentiment go from none to 95 %; a review's length follows its sentences."""
    shares = {name: words_of(name)[0] for name in BY_NAME}
    assert shares["words only"] == 1
    assert shares["slots of five"] == pytest.approx(0.5, abs=0.06)
    assert shares["quickstart"] == pytest.approx(0.13, abs=0.02)
    assert shares["quickstart"] < shares["slots of two"] < shares["slots of five"]
    assert shares["asides 70%"] == pytest.approx(0.05, abs=0.015)
    lengths = {n: words_of(f"sentences {n}")[1] for n in (1, 6, 12)}
    assert lengths[6] == pytest.approx(6 * lengths[1], rel=0.06)
    assert lengths[12] == pytest.approx(12 * lengths[1], rel=0.06)
    for world in settings.WORLDS:  # a token per word at least: the longest prompt has 20
        assert world.dials.positions >= 25 + world.max_new_tokens
    assert len({world.name for world in settings.WORLDS}) == 12


@pytest.mark.slow
def test_every_objective_and_producer_is_compared() -> None:
    found = settings.settings_of("methods")
    assert {setting.objective["name"] for setting in found} == set(OBJECTIVES)
    folder = engine.Folder(Path("/r"), settings.DEFAULT_WORLD, 0)
    for setting in found:
        assert folder.recipe(setting).objective.name == setting.objective["name"]
    weighted = {s.mask["kind"] for s in found if s.objective["name"] == "weighted"}
    # none is dpo, bit for bit; a discriminator is trained by a command of its own.
    assert weighted == set(MASKS) - {"none", "discriminator"}
    assert quickstart.preference_recipe(Path("/r"), 0, "/m", "dpo").train.epochs == settings.EPOCHS


def test_oracle_weights_are_those_of_words_with_a_sentiment() -> None:
    """Of a word of two tokens both weigh, and a longer word that holds it does not."""
    texts = [" The", " pl", "ot", " was", " won", "derful", " .", " Bad", "min", "ton", "</s>"]
    assert engine.oracle_weights(texts) == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]


def record(seed: int, setting: str, kl: float = 8.0, gain: float = 0.5) -> dict[str, object]:
    return {
        "world": "quickstart", "seed": seed, "setting": setting, "failed": None, "warnings": [],
        "points": [{"kl": kl, "gain": gain, "tokens": 10.0}],
    }  # fmt: skip


def test_gain_at_equal_distance_by_hand() -> None:
    """Three betas end at (2, 0.1), (6, 0.5) and (9, 0.2): half way between the first two at 4 nats,
    a third of the way down at 7. None ends below 2 or beyond 9.
    """
    ends = [record(0, "dpo 1", *end) for end in ((6.0, 0.5), (2.0, 0.1), (9.0, 0.2))]
    assert comparison.gain_at(ends, 4.0) == pytest.approx(0.3)
    assert comparison.gain_at(ends, 7.0) == pytest.approx(0.4)
    assert comparison.gain_at(ends, 1.0) is None
    assert comparison.gain_at(ends, 9.5) is None


def trainings(seed: int, name: str, *ends: tuple[float, float]) -> list[dict[str, object]]:
    return [record(seed, f"{name} {at}", *end) for at, end in enumerate(ends)]


def test_a_difference_at_equal_distance_is_read_over_the_common_range() -> None:
    """DPO spans 2 to 6 nats, the other 3 to 9: 3 to 6 are common. numpy's interpolation says the
    same at nine distances evenly apart in their logarithm.
    """
    dpo = trainings(0, "dpo", (2.0, 0.1), (6.0, 0.5))
    other = trainings(0, "oracle", (3.0, 0.3), (5.0, 0.9), (9.0, 0.7))
    assert comparison.shared_range(other, dpo) == (3.0, 6.0)
    levels = 3.0 * 2.0 ** (np.arange(9) / 8)
    mine, base = (
        np.interp(levels, [3, 5, 9], [0.3, 0.9, 0.7]),
        np.interp(levels, [2, 6], [0.1, 0.5]),
    )
    assert comparison.difference_over(other, dpo, (3.0, 6.0)) == pytest.approx((mine - base).mean())
    assert comparison.shared_range(dpo, trainings(0, "oracle", (7.0, 0.1), (9.0, 0.2))) is None


def test_intervals_over_seeds_are_paired_and_of_t() -> None:
    """Differences 0.1, 0.2, 0.3: mean 0.2, standard error 0.1 / sqrt 3, t(2) 4.3027. A seed without
    a common range is left out, and so is a lost training; two seeds are too few.
    """
    found = []
    for seed, (base, more) in enumerate(((0.5, 0.1), (0.1, 0.2), (0.9, 0.3))):
        found += trainings(seed, "dpo", (2.0, base), (8.0, base + 0.3))
        found += trainings(seed, "oracle", (2.0, base + more), (8.0, base + more + 0.3))
    found += trainings(3, "dpo", (2.0, 0.0), (8.0, 0.3))
    found += trainings(3, "oracle", (9.0, 0.9), (12.0, 0.9))
    oracle = comparison.at_equal_distance(found, "oracle")
    assert oracle is not None and oracle["n"] == 3
    assert oracle["mean"] == pytest.approx(0.2)
    assert oracle["high"] - oracle["mean"] == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-5)
    assert oracle["nats"] == pytest.approx([2.0, 8.0])
    for one in found:
        if (one["seed"], one["setting"]) == (1, "oracle 0"):
            one["warnings"] = ["the mask is zero"]
    assert comparison.at_equal_distance(found, "oracle") is None


def test_the_best_beta_is_chosen_by_its_mean_and_compared_with_dpos_best() -> None:
    """Oracle's second beta gains 0.6 and 0.8, its first 0.9 and 0.3: the second. DPO's best is its
    first, 0.5 and 0.3: 0.1 and 0.5 are added.
    """
    found = []
    for seed, gains in enumerate(((0.5, 0.2, 0.9, 0.6), (0.3, 0.4, 0.3, 0.8))):
        for name, gain in zip(("dpo 0.1", "dpo 1", "oracle 0.1", "oracle 1"), gains, strict=True):
            found.append(record(seed, name, gain=gain))
    best = comparison.at_best(found, "oracle")
    assert best is not None and best["beta"] == 1.0
    assert (best["mean"], best["gain"]["mean"]) == (pytest.approx(0.3), pytest.approx(0.7))


def test_a_run_that_ran_away_is_lost() -> None:
    assert not comparison.is_lost(record(0, "dpo", kl=19.0))
    assert comparison.is_lost(record(0, "dpo", kl=21.0))  # more than 2 nats for each of 10 tokens
    assert comparison.is_lost({**record(0, "dpo"), "warnings": ["the mask is zero"]})
    assert comparison.is_lost(
        {**record(0, "dpo"), "failed": "the loss is not finite", "points": []}
    )


def test_a_killed_command_goes_on_after_its_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    whole = json.dumps(record(0, "dpo")) + "\n"
    path.write_text(whole + whole[:20])
    assert [worlds.key_of(r) for r in worlds.read_lines(path)] == [("quickstart", 0, "dpo")]
    assert path.read_text() == whole


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> engine.Folder:
    """A quickstart of a tenth of its rows, made for two methods."""
    with pytest.MonkeyPatch.context() as patch:
        for name, count in (("REVIEWS", 300), ("TRAIN_PROMPTS", 130), ("TEST_PROMPTS", 24)):
            patch.setattr(quickstart, name, count)
        folder = engine.Folder(tmp_path_factory.mktemp("small"), settings.DEFAULT_WORLD, 1)
        engine.make(folder, settings.COMPARED)
        return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("dpo", marks=pytest.mark.exhaustive), "sparsepo"])
def test_a_method_is_trained_and_measured_as_the_quickstart_does_it(
    name: str, small: engine.Folder
) -> None:
    """Against the product's stages on the quickstart's own recipe: every step's loss, and gain, KL
    and AUC of the evaluation.
    """
    (setting,) = (s for s in settings.COMPARED if s.name.startswith(name))
    found = world_measure.measure(small, world_measure.HeldOut(small), setting)
    recipe = quickstart.preference_recipe(small.root, small.seed, small.start, name)
    product = f"{small.root}/product-{name}"
    own = {"pairs": f"{product}/pairs", "reference": f"{product}/reference"}
    recipe = recipe.model_copy(
        update={"run_dir": product, "paths": recipe.paths.model_copy(update=own)}
    )
    for stage in (PREPARE, REFERENCE):
        engine.run_stage(stage, recipe)
    train_here(recipe)
    engine.run_stage(EVALUATE, recipe)
    records = [r for r in read_metrics(RunStore(f"{recipe.run_dir}/train")) if "kind" not in r]
    assert len(records) == len(found["losses"]) >= 5
    assert found["losses"] == pytest.approx([r["loss"] for r in records], abs=1e-6)
    evaluation = Path(recipe.run_dir, "evaluation")
    sentiment = json.loads((evaluation / "sentiment.json").read_text())
    last = found["points"][-1]
    assert last["gain"] == pytest.approx(sentiment["reward/gain"]["mean"], abs=1e-9)
    assert last["kl"] == pytest.approx(sentiment["kl/policy_reference"]["mean"], rel=1e-5)
    if name == "sparsepo":
        masks = json.loads((evaluation / "masks.json").read_text())
        assert found["auc"] == pytest.approx(masks["auc/reward_mask"]["mean"], abs=1e-6)
        assert found["key_fraction"] == pytest.approx(masks["key_token_fraction"])


@pytest.mark.slow
def test_the_oracle_ranks_every_token_right_and_noise_exchanges_responses(
    small: engine.Folder,
) -> None:
    found = world_measure.measure(small, world_measure.HeldOut(small), settings.ORACLE)
    assert found["auc"] == 1
    assert found["zeros"] == pytest.approx(1 - found["key_fraction"])
    clean = [json.loads(line) for line in (small.root / "train.jsonl").read_text().splitlines()]
    noisy = engine.Folder(small.root, BY_NAME["noise 30%"], small.seed)
    engine.write_pairs(noisy, small.candidate_recipe())
    rows = [json.loads(line) for line in (small.root / "train.jsonl").read_text().splitlines()]
    turned = [a["chosen"] == b["rejected"] for a, b in zip(clean, rows, strict=True)]
    assert sum(turned) / len(turned) == pytest.approx(0.3, abs=0.12)
    for a, b, is_turned in zip(clean, rows, turned, strict=True):
        assert b == (
            {**a, "chosen": a["rejected"], "rejected": a["chosen"],
             "chosen_weights": a["rejected_weights"], "rejected_weights": a["chosen_weights"]}
            if is_turned else a
        )  # fmt: skip
