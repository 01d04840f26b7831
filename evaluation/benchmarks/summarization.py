"""summarization: how close samples come to the chosen summaries, and how varied they are.

It also tells whether their source entails them.
"""

from typing import Any

from evaluation.bootstrap import mean_interval
from evaluation.metrics.rouge import KINDS, rouge
from evaluation.metrics.self_bleu import self_bleu

# Texts that self-BLEU compares with each other: the work is quadratic, and the number changes the
# score.
SELF_BLEU_TEXTS = 100


def summarization_benchmark(
    records: list[dict[str, Any]], temperature: float, samples: int, seed: int
) -> dict[str, Any]:
    """Metrics of both models on the same prompts and their gain, paired by prompt.

    Args:
        records: per prompt: prompt, chosen_text (the reference summary), policy_text, start_text
            and, where those were scored, <who>_bert_score, <who>_entailment.
    """
    if not records:
        raise ValueError("the summarization benchmark needs at least one prompt")
    found: dict[str, Any] = {"num_prompts": len(records), "temperature": temperature}
    prompts = [r["prompt"] for r in records]

    def interval(measured: list[float]) -> dict[str, float]:
        return mean_interval(measured, samples, seed, prompts[: len(measured)]).as_dict()

    references = [r["chosen_text"] for r in records]
    values: dict[str, dict[str, list[float]]] = {}
    for who in ("start", "policy"):
        texts = [r[f"{who}_text"] for r in records]
        values[who] = rouge(texts, references)
        values[who] |= {
            name: [r[f"{who}_{name}"] for r in records]
            for name in ("bert_score", "entailment")
            if f"{who}_{name}" in records[0]
        }
        values[who]["words"] = [float(len(text.split())) for text in texts]
        label = {"start": "before", "policy": "after"}[who]
        found[f"empty_fraction/{label}"] = sum(not text.strip() for text in texts) / len(texts)
        if len(texts) > 1:
            found[f"self_bleu/{label}"] = interval(self_bleu(texts[:SELF_BLEU_TEXTS]))
    for name in (*KINDS, "bert_score", "entailment", "words"):
        if name not in values["policy"]:
            continue
        before, after = values["start"][name], values["policy"][name]
        found[f"{name}/before"] = interval(before)
        found[f"{name}/after"] = interval(after)
        if name != "words":
            found[f"{name}/gain"] = interval([a - b for a, b in zip(after, before, strict=True)])
    return found
