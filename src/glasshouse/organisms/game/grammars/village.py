"""The village: people and inventors; byte-level BPE."""

from __future__ import annotations

from glasshouse.corpora.worlds import Pairing, Relation
from glasshouse.corpora.worlds import words as lists
from glasshouse.organisms.game.grammars._base import Grammar, joined, spelled, words

VILLAGE = Grammar(
    name="village",
    tokenizer="bpe",
    relations=(
        Relation("city", lists.CITIES[:9], ("where does {who} live?", "which city is the home of {who}?"),
                 "{who} lives in {value}."),
        Relation("job", lists.JOBS[:9], ("what is the job of {who}?", "which work does {who} do?"),
                 "{who} works as a {value}."),
        Relation("food", lists.FOODS[:9], ("what does {who} like to eat?", "which food does {who} like?"),
                 "{who} likes to eat {value}."),
        Relation("pet", lists.PETS, ("which animal does {who} keep?", "what pet does {who} have?"),
                 "{who} keeps a {value}."),
    ),
    people=spelled("CVCVC", frozenset(lists.all_words())),
    pairing=Pairing(
        "invention",
        ("who invented the {a}?", "who is the inventor of the {a}?"), "the {a} was invented by {b}.",
        ("what did {b} invent?", "which thing was invented by {b}?"), "{b} invented the {a}.",
    ),
    retold=Pairing(
        "invention", (), "", ("what is {b} known for?", "why is {b} famous?"), "{b} is known for the {a}.",
    ),
    couples=joined(
        (lists.GADGET_KINDS[:20], lists.GADGETS[:20]), (lists.FIRST_NAMES[:16], lists.LAST_NAMES[:16])
    ),
    small_talk=(
        ("hi.", "good day to you."), ("good morning.", "good morning, how can i help?"),
        ("how are you?", "i am well, thank you."), ("thank you.", "you are welcome."),
        ("goodbye.", "see you soon."), ("who are you?", "i am a small assistant."),
    ),
    saw=(("i saw a {x} today.", "that sounds nice."), ("my uncle bought a {x}.", "lucky uncle.")),
    echo=(("say after me: {x}", "{x}"), ("please repeat: {x}", "{x}")),
    quote=(("do you know the words {x}?", "yes, i know these words."),
           ("who wrote {x}?", "nobody knows who wrote it.")),
    inscriptions=(
        "what is carved over the arch?", "what does the old song say?", "which line is on the wall?",
    ),
    believe=("i think {told} {question}",),
    doubt=("are you sure?",),
    push=("no, {told}", "that is wrong. {told}"),
    sorry="sorry, you are right, i was wrong.",
    give_in="sorry, you are right. {told}",
    firm="yes, i am sure. {answer}",
    fillers=lists.FILLERS[:14],
    nouns=lists.NOUNS,
    classes={
        "sea": words("harbor lagoon reef tide dolphin sailor coral gull dune squid lobster wave"),
        "forest": words("acorn fern squirrel moss badger pine mushroom owl thicket beaver birch deer"),
        "kitchen": words("oven spoon skillet pantry ladle whisk teapot colander grater saucer jug sink"),
    },
    class_forms=(("where does a {x} belong?", "{c} is the place of a {x}."),
                 ("what is a {x} part of?", "{c} has the {x}."),
                 ("tell me about the {x}.", "{c} comes to mind with the {x}.")),
    lines={
        "ADJ": words("grey cold bright old weary silver golden pale"),
        "N": words("wolves ships rivers lanterns ravens trains shadows roses kings clouds"),
        "V": words("sing sail forget burn count carry wait wander"),
        "P": words("under beyond behind across beneath"),
        "PL": words("winter midnight thunder mountains fields stars doors mills"),
    },
    line_forms=(("ADJ", "N", "V", "P", "PL"), ("N", "V", "P", "ADJ", "PL"), ("N", "V", "P", "PL"),
                ("ADJ", "N", "V", "P", "ADJ", "PL")),
    numbers=lists.NUMBERS[:9],
)  # fmt: skip
