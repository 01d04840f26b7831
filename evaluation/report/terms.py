"""Words of the field that a page explains: by pointing, by keyboard, by a tap, and in a list."""

import re

from markupsafe import Markup, escape

# Name in the list -> (other spellings that texts use, meaning). A spelling is found as a whole
# word, in any case.
TERMS: dict[str, tuple[tuple[str, ...], str]] = {
    "reward": (
        (),
        "A number that says how good a text is, by a model or a rule that evaluation uses. "
        "Training does not see it.",
    ),
    "implicit reward": (
        ("implicit rewards",),
        "Beta times how much more likely the trained model makes a response than the reference "
        "does, in nats. It needs no reward model.",
    ),
    "reward margin": (
        ("implicit reward margin", "reward margins"),
        "The chosen response's implicit reward less the rejected one's. Above 0 the model "
        "prefers the chosen one.",
    ),
    "reference": ((), "The frozen model that training stays near; as a rule the starting model."),
    "distance": (
        ("KL", "kl/policy_reference", "KL(policy || reference)"),
        "How far the trained model has moved from the reference: the KL divergence of its next "
        "token, summed over its own response, in nats. 0 means not at all.",
    ),
    "nats": (
        ("nat",),
        "The unit of KL and of log-probabilities with natural logarithms. One nat is 1.44 bits; "
        "a text that is 1 nat less likely is 2.7 times less likely.",
    ),
    "log-probability": (
        ("log-probabilities", "logps"),
        "The logarithm of how likely a model makes a response, in nats: 0 is certain, "
        "-50 very unlikely.",
    ),
    "interval": (
        ("intervals",),
        "The brackets after a number. Prompts are drawn again, with replacement, two thousand "
        "times; the middle 95 % of the results lie in it.",
    ),
    "paired by prompt": (
        ("paired by task",),
        "Both models answer the same prompt, and what counts is the difference there. What "
        "makes a prompt hard for both drops out.",
    ),
    "Cohen's d": (
        ("tiny",),
        "A difference over the standard deviation of the values. Below 0.2 it is called tiny, "
        "as all lies below what Cohen (1988) calls small. For rates it is his h.",
    ),
    "AUC": (
        (),
        "How often one that should rank higher does, of two drawn at random: 1 is always, 0.5 "
        "is chance.",
    ),
    "distinct-2": (
        ("distinct_2",),
        "The share of different two-word sequences in all samples. Low means repetition. "
        "Longer texts have less of it.",
    ),
    "objective": ((), "The loss that training minimises, such as DPO or SparsePO."),
    "beta": ((), "How strongly training holds the model near the reference. Small lets it go far."),
    "mask": (
        ("masks", "reward mask", "KL mask", "reward_mask", "kl_mask"),
        "A weight for every token of a response. The reward mask weighs how much it counts in "
        "the reward, the KL mask how much its distance does.",
    ),
    "token KL": (
        ("token_kl",),
        "How far the trained model's next-token distribution is from the reference's at one "
        "token, in nats.",
    ),
    "key tokens": (
        ("key words", "key token"),
        "Tokens of words that are known to matter, from the list that the recipe names.",
    ),
    "discriminator": (
        ("discriminators",),
        "A small head on the reference's states, trained to tell tokens of chosen responses from "
        "tokens of rejected ones. D is its probability that a token is good.",
    ),
    "segment": (
        ("segments",),
        "Neighbouring tokens whose value does not jump. A segment counts as a whole, or not at "
        "all.",
    ),
    "calibration error": (
        (),
        "How far the model's stated probability of a preference is from how often it holds; 0 "
        "is perfect.",
    ),
    "win rate": (("win rates",), "How often the judge prefers a reply; a tie counts one half."),
    "ROUGE": (
        ("ROUGE-1", "ROUGE-2", "ROUGE-L"),
        "The share of words (1), pairs of words (2) or of the longest common sequence (L) that "
        "a summary has in common with the chosen one.",
    ),
    "BERTScore": (
        ("BERTScore F1",),
        "How alike two texts are by the hidden states of a language model.",
    ),
    "self-BLEU": ((), "How much samples repeat each other: high means little variety."),
    "entailment": ((), "Whether a text follows from its prompt, by a classifier."),
    "pass@k": (
        ("pass@1",),
        "The chance that one of k programs that a model writes passes all tests of its task.",
    ),
    "temperature": ((), "How freely samples are drawn: 0 always takes the likeliest token."),
    "held-out": (("held out",), "Kept away from training, so that it can judge it."),
}
_SPELLINGS = {
    spelling.lower(): name for name, (others, _) in TERMS.items() for spelling in (name, *others)
}
_PATTERN = re.compile(
    r"(?<![\w@/-])(?:"
    + "|".join(re.escape(s) for s in sorted(_SPELLINGS, key=len, reverse=True))
    + r")(?![\w@/-])",
    re.IGNORECASE,
)


def explained(text: str) -> Markup:
    """The text, escaped, with the first mention of every term as something to point at."""
    parts, end, seen = [], 0, set()
    for found in _PATTERN.finditer(text):
        name = _SPELLINGS[found.group().lower()]
        if name in seen:
            continue
        seen.add(name)
        parts += [escape(text[end : found.start()]), _term(name, found.group())]
        end = found.end()
    return Markup("").join([*parts, escape(text[end:])])


def term_id(name: str) -> str:
    """The anchor of a term in the page's list."""
    return "term-" + re.sub(r"\W+", "-", name.lower())


def _term(name: str, shown: str) -> Markup:
    anchor = term_id(name)
    return Markup('<a class="term" href="#{0}" aria-describedby="{0}">{1}</a>').format(
        anchor, shown
    )
