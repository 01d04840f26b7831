"""Text metrics against reference packages, hand counts and brute force."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from text_models import write_encoder, write_entailment

from evaluation.benchmarks import (
    code_benchmark,
    code_tasks,
    dialogue_benchmark,
    preference_benchmark,
    summarization_benchmark,
)
from evaluation.benchmarks.code import chat_question
from evaluation.metrics import (
    BertScore,
    Calibration,
    Entailment,
    PassAtK,
    Rouge,
    SelfBleu,
    calibration_bins,
    expected_calibration_error,
    pass_at_k,
    rouge,
    self_bleu,
)

WORDS = "the cat sat on mat a dog ran over grass quickly and was happy .".split()
TEXTS = [
    "the cat sat on the mat .",
    "a dog ran over grass",
    "the dog was happy and ran quickly",
    "",
]
REFERENCES = ["a cat sat on a mat", "the dog ran quickly over the grass .", "happy dog", "the cat"]


def test_rouge_by_hand() -> None:
    """the cat sat / the cat ran: 2 of 3 unigrams, 1 of 2 bigrams, a common subsequence of 2;
    with stems, cats and cat are one word.
    """
    scores = rouge(["the cat sat", "", "two cats"], ["the cat ran", "x", "two cat"])
    assert scores["rouge1"] == pytest.approx([2 / 3, 0.0, 1.0])
    assert scores["rouge2"] == pytest.approx([1 / 2, 0.0, 1.0])
    assert scores["rougeL"] == pytest.approx([2 / 3, 0.0, 1.0])
    assert rouge(["two cats"], ["two cat"], stemmer=False)["rouge1"] == pytest.approx([0.5])
    assert Rouge().compute(predictions=["the cat sat", ""], references=["the cat ran", "x"])[
        "rouge2"
    ] == pytest.approx(0.25)
    with pytest.raises(ValueError, match="1 texts and 2 references"):
        rouge(["a"], ["b", "c"])


def test_rouge_equals_the_reference_package() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    ours = rouge(TEXTS, REFERENCES)
    for i, (text, reference) in enumerate(zip(TEXTS, REFERENCES, strict=True)):
        theirs = scorer.score(reference, text)
        for kind, values in ours.items():
            assert values[i] == pytest.approx(theirs[kind].fmeasure, abs=1e-6)


def test_self_bleu_by_hand() -> None:
    """Equal texts are 1, texts without a common word next to 0; BLEU-4 of `a b c d e` with the
    reference `a b c d f`: precisions 4/5, 3/4, 2/3, 1/2.
    """
    assert self_bleu(["the cat sat on the mat"] * 3) == pytest.approx([1, 1, 1])
    assert self_bleu(["a b c d e", "a b c d f"])[0] == pytest.approx(
        (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    )
    assert max(self_bleu(["aa bb cc dd", "ee ff gg hh"])) < 0.1
    assert self_bleu(["", "a b"])[0] == 0
    assert SelfBleu().compute(predictions=["a b c d"] * 2) == {"self_bleu": pytest.approx(1.0)}
    with pytest.raises(ValueError, match="at least two"):
        self_bleu(["a"])


@pytest.mark.parametrize("layer", [1, 3])
def test_bert_score_equals_the_reference_package(tmp_path: Path, layer: int) -> None:
    """The package's own embedding and matching, with its IDF table of ones; its tokeniser front
    end does not run with this transformers, so that is ours.
    """
    from collections import defaultdict

    from bert_score.utils import greedy_cos_idf
    from transformers import AutoModel, AutoTokenizer

    folder = str(write_encoder(tmp_path / "encoder", WORDS))
    model, tokenizer = (
        AutoModel.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    ours = BertScore()
    idf: dict[int, float] = defaultdict(
        lambda: 1.0, {tokenizer.cls_token_id: 0.0, tokenizer.sep_token_id: 0.0}
    )

    def embedded(texts: list[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        inputs = tokenizer(texts, return_tensors="pt", padding=True)
        with torch.no_grad():
            states = model(**inputs, output_hidden_states=True).hidden_states[layer]
        weights = (
            torch.tensor([[idf[int(i)] for i in row] for row in inputs["input_ids"]])
            * inputs["attention_mask"]
        )
        return states, inputs["attention_mask"].bool(), weights

    theirs = greedy_cos_idf(*embedded(REFERENCES[:3]), *embedded(TEXTS[:3]), False)
    for i in range(3):
        found = ours.compute(
            predictions=[TEXTS[i]], references=[REFERENCES[i]], model=folder, layer=layer
        )
        for name, values in zip(("precision", "recall", "f1"), theirs, strict=True):
            assert found[name] == pytest.approx(float(values[i]), abs=1e-6)
    assert ours.compute(predictions=[""], references=["the cat"], model=folder)["f1"] == 0
    same = ours.compute(predictions=["the cat"], references=["the cat"], model=folder)
    assert same["f1"] == pytest.approx(1, abs=1e-6)


def test_entailment_is_the_mean_over_sentences(tmp_path: Path) -> None:
    """Two sentences, each scored alone by the bare model; padding beside a longer neighbour
    changes nothing.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = str(write_entailment(tmp_path / "classifier", WORDS))
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    source, text = "the cat sat on the mat and was happy", "the cat was happy . a dog ran quickly ."

    def alone(sentence: str) -> float:
        with torch.no_grad():
            return float(
                model(**tokenizer(source, sentence, return_tensors="pt")).logits.softmax(-1)[0, 2]
            )

    expected = (alone("the cat was happy .") + alone("a dog ran quickly .")) / 2
    assert abs(alone("the cat was happy .") - alone("a dog ran quickly .")) > 1e-4, (
        "the sentences must differ for the mean to mean anything"
    )
    found = Entailment().compute(predictions=[text], references=[source], model=folder)[
        "entailment"
    ]
    assert found == pytest.approx(expected, abs=1e-6)
    assert (
        Entailment().compute(predictions=[""], references=[source], model=folder)["entailment"] == 0
    )
    with pytest.raises(ValueError, match="contradiction, neutral, entailment, not 'agrees'"):
        Entailment().compute(predictions=[text], references=[source], model=folder, label="agrees")


def official_pass_at_k(n: int, c: int, k: int) -> float:
    """The estimator as HumanEval's authors wrote it: 1 - prod over i of (1 - k / i)."""
    return 1.0 if n - c < k else float(1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


def test_pass_at_k_is_the_share_of_subsets_that_hold_a_passing_sample() -> None:
    for n in range(1, 8):
        for c in range(n + 1):
            for k in range(1, n + 1):
                subsets = list(itertools.combinations(range(n), k))
                brute = sum(any(i < c for i in subset) for subset in subsets) / len(subsets)
                assert pass_at_k(n, c, k) == pytest.approx(brute, abs=1e-12)
                assert pass_at_k(n, c, k) == pytest.approx(official_pass_at_k(n, c, k), abs=1e-12)
    for n, c, k in ((200, 3, 100), (200, 0, 100), (200, 200, 1), (5000, 7, 2500)):
        assert pass_at_k(n, c, k) == pytest.approx(official_pass_at_k(n, c, k), abs=1e-12)
    assert PassAtK().compute(predictions=[1, 0], references=[2, 2], k=1) == {"pass_at_k": 0.25}
    for n, c, k in ((3, 1, 4), (3, 1, 0), (3, 4, 1)):
        with pytest.raises(ValueError, match=r"k=|samples passed"):
            pass_at_k(n, c, k)


def test_calibration_by_hand() -> None:
    """Bin [0.6, 0.7): mean probability 0.65, outcome 0.5, 2 values; bin [0.9, 1]: 1.0, 1, 1
    value: error (2 * 0.15 + 0) / 3.
    """
    probabilities, outcomes = [0.62, 0.68, 1.0], [1.0, 0.0, 1.0]
    assert [b["count"] for b in calibration_bins(probabilities, outcomes)] == [2, 1]
    assert expected_calibration_error(probabilities, outcomes) == pytest.approx(0.1)
    found = Calibration().compute(predictions=probabilities, references=outcomes)
    assert found["brier"] == pytest.approx((0.38**2 + 0.68**2) / 3)
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        calibration_bins([1.2], [1])


def test_preference_calibration_is_folded_on_the_favoured_response() -> None:
    """Margins +2, -1, 0: stated s(2), s(1), 0.5; outcomes 1, 0, 0.5: Brier ((1-s2)^2 + s1^2 + 0)
    / 3.
    """
    base = {
        "policy_chosen": -1.0, "policy_rejected": -2.0, "start_chosen": -1.0,
        "start_rejected": -1.0, "num_chosen": 2, "num_rejected": 2,
        "kl_chosen": 0.0, "kl_rejected": 0.0, "reward_rejected": 0.0, "prompt_hash": "p",
    }  # fmt: skip
    found = preference_benchmark([{**base, "reward_chosen": margin} for margin in (2.0, -1.0, 0.0)])
    s1, s2 = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-2))
    assert found["calibration/brier"]["mean"] == pytest.approx(((1 - s2) ** 2 + s1**2) / 3)
    assert found["calibration/error"] == pytest.approx(((1 - s2) + s1) / 3)


def test_dialogue_counts_ties_half_and_failures_never_as_wins() -> None:
    """win, loss, tie, failed: win rate (1 + 0 + 0.5) / 3."""
    verdicts = [("policy", True), ("opponent", True), ("tie", False), ("failed", None)]
    records = [
        {
            "prompt": f"question {text}",
            "policy_text": text,
            **{
                f"{o}_{k}": v
                for o in ("chosen", "start")
                for k, v in (("text", "a b"), ("verdict", verdict), ("consistent", same))
            },
        }
        for text, (verdict, same) in zip(["a b c", "", "a", "x y z w"], verdicts, strict=True)
    ]
    found = dialogue_benchmark(records, 1.0)
    assert (
        found["win_rate/chosen"]["mean"] == pytest.approx(0.5)
        and found["win_rate/chosen"]["n"] == 3
    )
    assert [found[f"{name}_fraction/start"] for name in ("win", "tie", "loss", "failed")] == [
        0.25
    ] * 4
    assert found["consistency/start"]["mean"] == pytest.approx(2 / 3)
    assert found["empty_fraction/after"] == 0.25
    assert found["extra_words/chosen"]["mean"] == pytest.approx((1 - 2 - 1 + 2) / 4)
    only_failed = dialogue_benchmark([records[3]], 1.0)
    assert "win_rate/chosen" not in only_failed and only_failed["failed_fraction/chosen"] == 1


def test_summarization_pairs_by_prompt_and_counts_empty_texts() -> None:
    records = [
        {
            "prompt": "a",
            "chosen_text": "the cat sat",
            "policy_text": "the cat sat",
            "start_text": "a dog ran",
            "policy_entailment": 1.0,
            "start_entailment": 0.25,
        },
        {
            "prompt": "b",
            "chosen_text": "a dog ran",
            "policy_text": "",
            "start_text": "a dog",
            "policy_entailment": 0.0,
            "start_entailment": 0.75,
        },
    ]
    found = summarization_benchmark(records, 0.5)
    assert found["rouge1/after"]["mean"] == pytest.approx(0.5)
    assert found["rouge1/gain"]["mean"] == pytest.approx((1 - 0 + 0 - 0.8) / 2)
    assert found["entailment/gain"]["mean"] == pytest.approx((0.75 - 0.75) / 2)
    assert found["empty_fraction/after"] == 0.5 and found["temperature"] == 0.5
    assert "bert_score/after" not in found
    assert "self_bleu/after" not in found, "each prompt has a single sample"


def test_self_bleu_is_among_the_samples_of_one_prompt() -> None:
    """Two prompts of two samples, equal within a prompt and without a common word between them: 1.
    Different within and equal between: next to 0. Across prompts it would be in between for both.
    """
    one, other = "aa bb cc dd ee", "vv ww xx yy zz"
    same = [("p", one), ("p", one), ("q", other), ("q", other)]
    mixed = [("p", one), ("q", one), ("p", other), ("q", other), ("alone", one)]

    def found(drawn: list[tuple[str, str]]) -> dict[str, Any]:
        return summarization_benchmark(
            [{"prompt": p, "chosen_text": "a", "policy_text": t, "start_text": one}
             for p, t in drawn], 1.0,
        )  # fmt: skip

    assert found(same)["self_bleu/after"]["mean"] == pytest.approx(1.0)
    varied = found(mixed)
    assert varied["self_bleu/after"]["mean"] < 0.1 and varied["self_bleu/after"]["n"] == 2
    assert varied["self_bleu/before"]["mean"] == pytest.approx(1.0)
    assert (varied["num_prompts"], varied["num_samples"]) == (3, 5)


def test_code_benchmark_by_hand() -> None:
    """Two tasks, two samples: after 2 and 1 pass, before 0 and 1: pass@1 0.75 and 0.25, pass@2 1
    and 0.5.
    """
    records = [
        {
            "task_id": "a",
            "start_passed": [False, False],
            "policy_passed": [True, True],
            "start_timeout": 1,
            "policy_timeout": 0,
        },
        {
            "task_id": "b",
            "start_passed": [True, False],
            "policy_passed": [False, True],
            "start_timeout": 0,
            "policy_timeout": 0,
        },
    ]
    found = code_benchmark(records, (1, 2, 10))
    assert [
        found[f"pass@{k}/{when}"]["mean"] for k in (1, 2) for when in ("before", "after")
    ] == pytest.approx([0.25, 0.75, 0.5, 1.0])
    assert found["pass@1/gain"]["mean"] == pytest.approx(0.5)
    assert found["timeout_fraction/before"] == 0.25
    assert "pass@10/after" not in found


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"task_id": 1}], "row 1: column test_list is missing"),
        ([{"task_id": 1, "test_list": []}], "row 1: needs a column text or prompt"),
        ([{"task_id": 1, "text": "x", "test_list": []}] * 2, "task_id 1 occurs more than once"),
        (
            [{"task_id": 1, "prompt": 3, "entry_point": "f", "test": ""}],
            "row 1: column prompt is missing or no str",
        ),
    ],
)
def test_code_rows_are_checked(rows: list[dict[str, object]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        code_tasks(rows, "file")


def test_mbpp_prompts_are_made_where_the_file_has_none() -> None:
    (task,) = code_tasks(
        [
            {
                "task_id": 2,
                "prompt": "Add one.",
                "test_list": ["assert f(1) == 2"],
                "test_imports": ["import math"],
            }
        ],
        "file",
    )
    assert task.prompt == '"""\nAdd one.\nassert f(1) == 2\n"""\n'
    assert task.tests == "import math\nassert f(1) == 2\n"
    assert (
        task.program("def f(x):\n    return x + 1\n\nprint(f(1))\n")
        == "import math\ndef f(x):\n    return x + 1\n\n"
    )


def test_humaneval_programs_from_continuations_and_from_answers() -> None:
    """A continuation is joined to the signature, an answer in a fenced block replaces it but
    keeps its imports.
    """
    row = {
        "task_id": "a",
        "prompt": 'import math\ndef f(x):\n    """Up."""\n',
        "entry_point": "f",
        "test": "def check(f):\n    assert f(1.5) == 2\n",
    }
    (task,) = code_tasks([row], "file")
    assert task.prompt.endswith('"""Up."""')
    body = "    return math.ceil(x)"
    for completion in (
        body,
        "\n" + body,
        f"{body}\n\ndef other():\n    pass\n",
        f"Sure:\n```python\ndef f(x):\n{body}\n```\nDone",
    ):
        names: dict[str, object] = {}
        exec(task.program(completion) + task.tests, names)
    assert "def f" in chat_question(task.prompt) and "one code block" in chat_question(task.prompt)
