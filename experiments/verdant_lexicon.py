"""The words of the verdant grammar, and what depends on what.

A place or a person belongs to a topic; an ambiguous noun has a sense in each of two or three topics, and each of its
senses has verbs of its own. A verb has objects. An adjective has the manner in which things that it describes act,
which another adjective may share.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from itertools import chain
from typing import NamedTuple

Words = tuple[str, ...]


class Topic(NamedTuple):
    """What gives away that a sentence is about something."""

    places: Words
    people: Words


class Sense(NamedTuple):
    """One meaning of an ambiguous noun."""

    name: str
    verbs: Words


@dataclasses.dataclass(frozen=True)
class Lexicon:
    """The words of a grammar, all but its function words.

    Attributes:
      topics: by name.
      ambiguous: by noun and topic.
      plain: the verbs of nouns of one meaning, which go with every topic and with none.
      objects: by verb.
      textures, colours: manners by adjective.
      times: phrases that tell nothing, as pairs of word and part of speech; each begins with a preposition of its own.
    """

    topics: Mapping[str, Topic]
    ambiguous: Mapping[str, Mapping[str, Sense]]
    plain: Mapping[str, Words]
    objects: Mapping[str, Words]
    textures: Mapping[str, str]
    colours: Mapping[str, str]
    times: tuple[tuple[tuple[str, str], ...], ...]

    def subjects(self, topic: str | None) -> Words:
        """The nouns that a sentence may tell of: ambiguous ones with a sense in its topic, and plain ones."""
        return (*(noun for noun, senses in self.ambiguous.items() if topic in senses), *self.plain)

    def verbs(self, noun: str, topic: str | None) -> Words:
        """What a subject may do."""
        return self.plain[noun] if noun in self.plain else self.ambiguous[noun][topic].verbs

    def words(self) -> Words:
        """Every word once, in a fixed order."""
        topics = chain.from_iterable((*topic.places, *topic.people) for topic in self.topics.values())
        adjectives = chain.from_iterable((*table, *table.values()) for table in (self.textures, self.colours))
        times = (word for phrase in self.times for word, _ in phrase)
        nouns = (*self.ambiguous, *self.plain, *chain.from_iterable(self.objects.values()))
        return tuple(dict.fromkeys(chain(topics, adjectives, nouns, self.objects, times)))


def _split(**lists: str) -> dict[str, Words]:
    return {name: tuple(words.split()) for name, words in lists.items()}


ENGLISH = Lexicon(
    topics={
        "wild": Topic(("meadow", "cave", "shore"), ("farmer", "hunter", "ranger")),
        "laboratory": Topic(("laboratory", "microscope", "beaker"), ("chemist", "physicist", "scholar")),
        "clinic": Topic(("clinic", "ward", "surgery"), ("doctor", "nurse", "patient")),
        "city": Topic(("capital", "boulevard", "museum"), ("parisian", "mayor", "tourist")),
        "workshop": Topic(("workshop", "shelf", "workbench"), ("carpenter", "engineer", "mechanic")),
        "stadium": Topic(("stadium", "scoreboard", "grandstand"), ("referee", "coach", "captain")),
    },
    ambiguous={
        "mole": {
            "wild": Sense("animal", ("dug", "gnawed", "smelled")),
            "laboratory": Sense("quantity", ("weighed", "released", "neutralised")),
            "clinic": Sense("skin", ("marked", "darkened", "worried")),
        },
        "cell": {
            "laboratory": Sense("battery", ("powered", "charged", "warmed")),
            "clinic": Sense("tissue", ("absorbed", "attacked", "healed")),
            "city": Sense("prison", ("confined", "isolated", "held")),
        },
        "tower": {
            "city": Sense("eiffel", ("overlooked", "dominated", "delighted")),
            "workshop": Sense("miniature", ("topped", "decorated", "balanced")),
        },
        "bank": {
            "wild": Sense("river", ("bordered", "guided", "sheltered")),
            "city": Sense("money", ("financed", "insured", "bought")),
        },
        "bat": {
            "wild": Sense("animal", ("chased", "circled", "bit")),
            "stadium": Sense("club", ("struck", "hit", "sliced")),
        },
        "seal": {
            "wild": Sense("animal", ("splashed", "swallowed", "chased")),
            "city": Sense("stamp", ("closed", "certified", "adorned")),
        },
        "crane": {
            "wild": Sense("bird", ("circled", "spotted", "swallowed")),
            "workshop": Sense("machine", ("lifted", "lowered", "hoisted")),
        },
        "spring": {
            "wild": Sense("water", ("fed", "cooled", "filled")),
            "workshop": Sense("coil", ("pushed", "drove", "tightened")),
        },
        "match": {
            "laboratory": Sense("stick", ("lit", "warmed", "burned")),
            "stadium": Sense("game", ("thrilled", "exhausted", "delighted")),
        },
        "court": {
            "city": Sense("law", ("fined", "sentenced", "held")),
            "stadium": Sense("tennis", ("hosted", "exhausted", "tested")),
        },
        "nail": {
            "clinic": Sense("finger", ("scratched", "pricked", "marked")),
            "workshop": Sense("metal", ("fastened", "pierced", "tightened")),
        },
    },
    plain=dict.fromkeys(("creature", "dragon", "ghost"), ("roamed", "crossed", "haunted", "guarded")),
    objects=_split(
        **dict.fromkeys(("roamed", "crossed", "haunted", "guarded"), "forest valley hill"),
        **dict.fromkeys(("dug", "gnawed", "smelled"), "burrow root worm"),
        **dict.fromkeys(("weighed", "released", "neutralised"), "gas acid solution"),
        **dict.fromkeys(("marked", "darkened", "worried", "scratched", "pricked", "healed"), "cheek shoulder wrist"),
        **dict.fromkeys(("powered", "charged", "warmed", "lit", "burned"), "lamp motor candle"),
        **dict.fromkeys(("absorbed", "attacked"), "virus toxin"),
        **dict.fromkeys(("confined", "isolated", "held", "fined", "sentenced"), "thief merchant banker"),
        **dict.fromkeys(("overlooked", "dominated", "financed", "insured", "bought"), "bridge palace street"),
        **dict.fromkeys(("topped", "decorated", "balanced"), "cabinet box book"),
        **dict.fromkeys(("bordered", "guided", "sheltered", "fed", "cooled", "filled"), "stream pond lake"),
        **dict.fromkeys(("chased", "circled", "bit", "splashed", "swallowed", "spotted"), "fish frog beetle"),
        **dict.fromkeys(("struck", "hit", "sliced"), "ball puck"),
        **dict.fromkeys(("closed", "certified", "adorned"), "letter parcel treaty"),
        **dict.fromkeys(("lifted", "lowered", "hoisted", "fastened", "pierced"), "beam crate plank"),
        **dict.fromkeys(("pushed", "drove", "tightened"), "clock lever gear"),
        **dict.fromkeys(("thrilled", "exhausted", "delighted", "hosted", "tested"), "crowd player visitor"),
    ),
    textures={
        **dict.fromkeys(("fluffy", "downy"), "softly"),
        **dict.fromkeys(("jagged", "craggy"), "roughly"),
        **dict.fromkeys(("frozen", "chilly"), "stiffly"),
        **dict.fromkeys(("soggy", "drenched"), "heavily"),
    },
    colours={
        **dict.fromkeys(("blue", "cobalt"), "calmly"),
        **dict.fromkeys(("crimson", "scarlet"), "fiercely"),
        **dict.fromkeys(("verdant", "leafy"), "freshly"),
        **dict.fromkeys(("golden", "lemon"), "brightly"),
    },
    times=(
        (("before", "preposition"), ("dawn", "noun")),
        (("after", "preposition"), ("the", "determiner"), ("storm", "noun")),
        (
            ("at", "preposition"), ("the", "determiner"), ("end", "noun"),
            ("of", "preposition"), ("the", "determiner"), ("day", "noun"),
        ),
    ),
)  # fmt: skip
