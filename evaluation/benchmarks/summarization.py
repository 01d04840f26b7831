"""summarization: how close samples come to the chosen summaries, and how varied they are.

It also tells whether their source entails them.
"""

from typing import Any

from evaluation.intervals import cluster_members, mean_interval, rate_interval
from evaluation.metrics.rouge import KINDS, rouge
from evaluation.metrics.self_bleu import self_bleu

_SHARES = (*KINDS, "entailment")  # in [0, 1]


def summarization_benchmark(records: list[dict[str, Any]], temperature: float) -> dict[str, Any]:
    """Metrics of both models on the same prompts and their gain, paired by prompt.

    Self-BLEU is that of a prompt's samples among themselves, its mean over prompts; there is none
    where a prompt has a single sample.

    Args:
        records: per sample: prompt, chosen_text (the reference summary), policy_text, start_text
            and, where those were scored, <who>_bert_score, <who>_entailment.
    """
    if not records:
        raise ValueError("the summarization benchmark needs at least one prompt")
    prompts = [r["prompt"] for r in records]
    of_prompts = cluster_members(prompts)
    found: dict[str, Any] = {
        "num_prompts": len(of_prompts),
        "num_samples": len(records),
        "temperature": temperature,
    }
    references = [r["chosen_text"] for r in records]
    values: dict[str, dict[str, list[float]]] = {}
    for who, label in (("start", "before"), ("policy", "after")):
        texts = [r[f"{who}_text"] for r in records]
        values[who] = rouge(texts, references)
        values[who] |= {
            name: [r[f"{who}_{name}"] for r in records]
            for name in ("bert_score", "entailment")
            if f"{who}_{name}" in records[0]
        }
        values[who]["words"] = [float(len(text.split())) for text in texts]
        found[f"empty_fraction/{label}"] = sum(not text.strip() for text in texts) / len(texts)
        alike = [_mean_self_bleu([texts[i] for i in rows]) for rows in of_prompts if len(rows) > 1]
        if alike:
            found[f"self_bleu/{label}"] = rate_interval(alike).as_dict()
    for name in (*KINDS, "bert_score", "entailment", "words"):
        if name not in values["policy"]:
            continue
        interval = rate_interval if name in _SHARES else mean_interval
        before, after = values["start"][name], values["policy"][name]
        found[f"{name}/before"] = interval(before, prompts).as_dict()
        found[f"{name}/after"] = interval(after, prompts).as_dict()
        if name != "words":
            gains = [a - b for a, b in zip(after, before, strict=True)]
            gain = (
                rate_interval(gains, prompts, (-1.0, 1.0))
                if name in _SHARES
                else mean_interval(gains, prompts)
            )
            found[f"{name}/gain"] = gain.as_dict()
    return found


def _mean_self_bleu(texts: list[str]) -> float:
    return min(1.0, sum(self_bleu(texts)) / len(texts))
