"""Passages whose last word can only be known from the whole: the embedded accuracy task. Standard library only.

Written like LAMBADA: lower case, words and marks separated by spaces, no mark after the last word. Several people, each
with a first and a last name, each have a thing of one colour, told in sentences of several kinds, with sentences
between them that do not matter. The last sentence ends with one of the last names or things, and only what was told
before says which: who reads only that sentence has to guess one of 16.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

COUNT = 2000
"""Passages of the embedded task: those of the seeds from 0."""
TRAINING = 1_000_000
"""The first seed of the passages that `train_tiny` learns from; all below it are held out."""

FIRST_NAMES = (
    "anna", "boris", "clara", "david", "edith", "felix", "greta", "henry",
    "irene", "jonas", "karin", "louis", "maria", "nadia", "oscar", "paula",
)  # fmt: skip
LAST_NAMES = (
    "adams", "baker", "carter", "dixon", "evans", "foster", "graham", "hughes",
    "irving", "jensen", "keller", "lopez", "miller", "norton", "owens", "parker",
)  # fmt: skip
COLOURS = (
    "red", "blue", "green", "yellow", "white", "black", "brown", "grey",
    "purple", "orange", "pink", "golden", "silver", "violet", "scarlet", "beige",
)  # fmt: skip
THINGS = (
    "lantern", "kettle", "fiddle", "basket", "hammer", "mirror", "candle", "blanket",
    "ladder", "saddle", "letter", "ribbon", "compass", "whistle", "pillow", "shovel",
)  # fmt: skip
FACTS = (
    "{first} {last} came in with the {colour} {thing} .",
    "the {colour} {thing} on the table was for {first} {last} .",
    "for years {first} {last} had kept the {colour} {thing} .",
    "`` the {colour} {thing} is mine , '' said {first} {last} .",
)
FILLERS = (
    "it had been raining since the morning .",
    "nobody said a word for a long while .",
    "the old dog slept beside the fire .",
    "`` we should hurry , '' somebody said .",
    "the clock struck four .",
    "outside , the wind was getting stronger .",
)
QUESTIONS = (
    ("when the lights went on again , nobody could find the {colour}", "thing"),
    ("years later they still talked about the {colour}", "thing"),
    ("what the child wanted was the {colour}", "thing"),
    ("the door opened , and in came {first}", "last"),
    ("the last one to leave was {first}", "last"),
    ("in the end they had to ask {first}", "last"),
)


def passage(seed: int, questions: int = 1) -> tuple[list[str], list[tuple[str, str]]]:
    """The sentences before the end, and `questions` ways to end: a sentence without its last word, and that word."""
    chance = random.Random(seed)
    count = chance.randint(6, 9)
    kinds = {"first": FIRST_NAMES, "last": LAST_NAMES, "colour": COLOURS, "thing": THINGS}
    drawn = {kind: chance.sample(words, count) for kind, words in kinds.items()}
    facts = [{kind: drawn[kind][number] for kind in kinds} for number in range(count)]
    sentences = [chance.choice(FACTS).format(**fact) for fact in facts]
    for filler in chance.sample(FILLERS, chance.randint(0, 2)):
        sentences.insert(chance.randint(0, len(sentences)), filler)
    ends = []
    for _ in range(questions):
        fact = chance.choice(facts)
        question, asked = chance.choice(QUESTIONS)
        ends.append((question.format(**fact), fact[asked]))
    return sentences, ends


def text(seed: int) -> str:
    """One passage."""
    sentences, ((question, answer),) = passage(seed)
    return " ".join([*sentences, question, answer])


def held_out(count: int = COUNT) -> list[str]:
    """The passages of the embedded task."""
    return [text(number) for number in range(count)]


def last_sentence(passage_text: str) -> str:
    """What a reader of the last sentence alone sees of a passage."""
    return passage_text.rpartition(" . ")[2]


def words() -> Iterator[str]:
    """Every word and mark that a passage can hold."""
    yield from (*FIRST_NAMES, *LAST_NAMES, *COLOURS, *THINGS)
    for pattern in (*FACTS, *FILLERS, *(question for question, _ in QUESTIONS)):
        yield from (word for word in pattern.split() if "{" not in word)
