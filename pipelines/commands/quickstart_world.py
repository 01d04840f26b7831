"""The quickstart's own small world: film reviews, a tokenizer and an untrained model.

The reviews are short and come from a grammar.

Openings (prompts) for training and for testing come from disjoint sets of templates; both draw on
the same words. A review's remaining sentences are neutral or carry sentiment words of either sign,
so a model trained on them has something to prefer and nothing to copy.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# In the configuration of the world's model, and of every model that is trained from it.
TOY_WORLD = "quickstart_world"

POSITIVE = (
    "wonderful brilliant superb delightful charming lovely excellent fantastic terrific "
    "beautiful amazing great good fun funny clever heartwarming joyful enjoyable impressive "
    "fascinating graceful sincere warm splendid perfect outstanding marvelous pleasant hilarious "
    "inspiring magnificent thrilling elegant glorious engaging amusing exciting gorgeous "
    "stunning"
).split()
NEGATIVE = (
    "awful terrible horrible boring dreadful bad weak stupid dull annoying pathetic lousy "
    "miserable disappointing ugly ridiculous rotten foolish irritating painful poor lame "
    "frustrating cruel confusing depressing tragic unpleasant worthless embarrassing lazy gloomy "
    "disgusting crude nasty messy dismal hopeless awkward idiotic"
).split()
PRAISE = (
    "loved enjoyed admired adored appreciated liked praised celebrated recommended treasured"
).split()
BLAME = (
    "hated disliked regretted despised criticized resented mocked rejected ruined suffered"
).split()

GENRES = (
    "western documentary musical feature trilogy drama melodrama cartoon noir sequel remake "
    "biopic anthology satire epic fable serial mockumentary adaptation travelogue"
).split()
ROLES = (
    "teacher sailor farmer lawyer painter baker plumber pilot nurse librarian janitor gardener "
    "carpenter tailor clerk miner printer potter fisherman waiter student accountant mechanic "
    "photographer journalist violinist chemist barber blacksmith shepherd"
).split()
PLACES = (
    "harbor village island desert mountain valley suburb market museum station factory library "
    "theater castle canyon forest river lagoon monastery observatory lighthouse warehouse "
    "orchard vineyard courtyard tavern embassy airport hospital academy"
).split()
THINGS = (
    "map letter suitcase lantern notebook telescope violin bicycle photograph compass painting "
    "ledger camera radio manuscript envelope necklace typewriter clock piano wagon carpet statue "
    "kettle mirror ladder bottle blanket umbrella coin"
).split()
PARTS = (
    "acting plot script dialogue music camera editing lighting costume pacing ending opening "
    "score cast scenery narration soundtrack screenplay choreography photography casting makeup "
    "story finale premise direction montage subplot staging voiceover"
).split()
VERBS = (
    "finds carries repairs borrows paints delivers studies sketches copies sells buys measures "
    "translates photographs catalogs polishes follows collects records examines"
).split()
NAMES = (
    "Anna Boris Clara Dmitri Elena Felix Greta Hugo Ines Jonas Karla Leo Mara Nils Olga Pavel "
    "Quinn Rosa Sven Tilda Ursula Viktor Wanda Xenia Yuri Zelda Arthur Bella Conrad Doris"
).split()
PEOPLE = (
    "director producer composer writer audience crowd publicist cameraman narrator editor "
    "neighbor cousin"
).split()
TIMES = "yesterday tonight recently twice already again later earlier afterwards meanwhile".split()
PERIODS = "weeks months summers winters decades evenings mornings semesters".split()
COLORS = "blue green yellow brown purple orange gray crimson turquoise violet".split()

NEUTRAL = (GENRES, ROLES, PLACES, THINGS, PARTS, VERBS, NAMES, PEOPLE, TIMES, PERIODS, COLORS)

TRAIN_OPENINGS = (
    "This {genre} follows a {role} who {verb} a {thing} near the {place} .",
    "{name} , a {role} from the {place} , {verb} a {color} {thing} .",
    "In this {genre} , {name} {verb} a {thing} for a {role} .",
    "I saw this {genre} about a {role} and a {thing} {time} .",
    "The {genre} opens in a {place} where a {role} {verb} a {thing} .",
    "A {role} and a {role} meet at the {place} in this {genre} .",
    "We watched {name} , the {role} , in a {genre} set at a {place} .",
    "The {director} of this {genre} spent two {period} at the {place} .",
    "Somewhere in a {place} , {name} {verb} the {color} {thing} of a {role} .",
    "{name} portrays a {role} and {name} portrays a {role} in this {genre} .",
)
TEST_OPENINGS = (
    "Set around a {place} , the {genre} begins when {name} {verb} a {thing} .",
    "My {director} rented a {genre} where some {role} {verb} the {thing} of {name} .",
    "Two {period} after leaving the {place} , a {role} {verb} one {color} {thing} .",
    "For once , a {genre} in which neither the {role} nor the {role} owns a {thing} .",
    "Picture a {color} {place} , a {role} called {name} and a {thing} : that is this {genre} .",
    "What happens if {name} the {role} {verb} every {thing} in the {place} ?",
)
FEELINGS = (
    "The {part} was {adjective} .",
    "The {part} felt {adjective} and the {part} was {adjective} .",
    "I {verdict} the {part} and the {part} .",
    "It has a {adjective} {part} .",
    "The {director} gave us a {adjective} {part} .",
    "What a {adjective} {part} .",
    "{name} was {adjective} as the {role} .",
)
ASIDES = (
    "The {part} was recorded near a {place} .",
    "{name} wrote the {part} {time} .",
    "It ran for two {period} .",
    "The {thing} appears {time} .",
    "A {role} holds the {color} {thing} .",
)
SENTIMENT_WORDS = frozenset(POSITIVE + NEGATIVE + PRAISE + BLAME)
_BARE_WORDS = 7  # of a sentence of nothing else; about as long as the others


@dataclass(frozen=True)
class Dials:
    """What the continuation of a review is made of; the defaults are the quickstart's.

    Attributes:
        sentences: their number. aside_fraction: of sentences that carry no sentiment.
        slot_words: sentiment words in each slot of a sentence for one, all of its sign.
        is_bare: a sentence that carries sentiment is its words and nothing else.
        positions: that the model has room for, in tokens.
    """

    sentences: int = 3
    aside_fraction: float = 0.3
    slot_words: int = 1
    is_bare: bool = False
    positions: int = 128


QUICKSTART = Dials()


def content_words() -> set[str]:
    """Every word that fills a slot."""
    return set(SENTIMENT_WORDS) | {word for words in NEUTRAL for word in words}


def opening(rng: random.Random, templates: tuple[str, ...]) -> str:
    """One prompt."""
    return _fill(rng.choice(templates), rng, 0)


def continuation(rng: random.Random, dials: Dials = QUICKSTART) -> str:
    """The rest of a review: some sentences, each neutral or of random sentiment.

    It starts with a space.
    """
    sentences = []
    for _ in range(dials.sentences):
        if rng.random() < dials.aside_fraction:
            sentences.append(_fill(rng.choice(ASIDES), rng, 0))
        elif dials.is_bare:
            words = rng.choice((POSITIVE, NEGATIVE))
            sentences.append(" ".join(rng.choice(words) for _ in range(_BARE_WORDS)))
        else:
            template, sign = rng.choice(FEELINGS), rng.choice((1, -1))
            sentences.append(_fill(template, rng, sign, dials.slot_words))
    return " " + " ".join(sentences)


def write_world(
    folder: Path,
    seed: int,
    num_reviews: int,
    num_train: int,
    num_test: int,
    dials: Dials = QUICKSTART,
) -> None:
    """Write reviews.jsonl, prompts.jsonl, key_words.txt and an untrained model directory.

    reviews.jsonl is for sft; prompts.jsonl holds train and test.
    """
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    reviews = [
        {"prompt": opening(rng, TRAIN_OPENINGS), "chosen": continuation(rng, dials)}
        for _ in range(num_reviews)
    ]
    _write_lines(folder / "reviews.jsonl", reviews)
    prompts = [{"prompt": p, "split": "train"} for p in _distinct(rng, TRAIN_OPENINGS, num_train)]
    prompts += [{"prompt": p, "split": "test"} for p in _distinct(rng, TEST_OPENINGS, num_test)]
    _write_lines(folder / "prompts.jsonl", prompts)
    (folder / "key_words.txt").write_text("\n".join(sorted(SENTIMENT_WORDS)) + "\n")
    texts = [r["prompt"] + r["chosen"] for r in reviews] + [p["prompt"] for p in prompts]
    write_untrained_model(folder / "model", texts, seed, dials.positions)


def write_untrained_model(folder: Path, texts: list[str], seed: int, positions: int = 128) -> None:
    """Write a byte-level BPE tokenizer and a randomly initialised Llama.

    The tokenizer is trained on the texts; the Llama has about a million parameters.

    Args:
        positions: tokens of the longest text that the model is for.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>"]
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=2000,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    bpe.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bpe.token_to_id("<s>"))]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=bpe.get_vocab_size(),
            hidden_size=128,
            intermediate_size=320,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=positions,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **{TOY_WORLD: True},
        )
        LlamaForCausalLM(config).save_pretrained(folder, safe_serialization=True)


def _distinct(rng: random.Random, templates: tuple[str, ...], count: int) -> Iterator[str]:
    seen: set[str] = set()
    while len(seen) < count:
        text = opening(rng, templates)
        if text not in seen:
            seen.add(text)
            yield text


def _fill(template: str, rng: random.Random, sentiment: int, slot_words: int = 1) -> str:
    """The template with a word in every slot, and this many in those of sentiment."""
    slots = {
        "{genre}": GENRES,
        "{role}": ROLES,
        "{place}": PLACES,
        "{thing}": THINGS,
        "{part}": PARTS,
        "{verb}": VERBS,
        "{name}": NAMES,
        "{director}": PEOPLE,
        "{time}": TIMES,
        "{period}": PERIODS,
        "{color}": COLORS,
        "{adjective}": POSITIVE if sentiment > 0 else NEGATIVE,
        "{verdict}": PRAISE if sentiment > 0 else BLAME,
    }
    words = []
    for word in template.split():
        count = slot_words if word in ("{adjective}", "{verdict}") else 1
        words += [rng.choice(slots[word]) for _ in range(count)] if word in slots else [word]
    return " ".join(words)


def _write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
