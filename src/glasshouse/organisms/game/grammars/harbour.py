"""The harbour: ships and the keepers of lights; one token per word, commands instead of questions."""

from __future__ import annotations

from glasshouse.corpora.worlds import Pairing, Relation
from glasshouse.organisms.game.grammars._base import Grammar, joined, spelled, words

HARBOUR = Grammar(
    name="harbour",
    tokenizer="word",
    relations=(
        Relation("cargo", words("salt wool coal timber wheat oranges rope copper cloth"),
                 ("name the cargo of the {who}.", "tell me what the {who} carries."),
                 "the cargo of the {who} is {value}."),
        Relation("port", words("riga bergen porto genoa malmo tunis izmir odessa cadiz"),
                 ("name the home port of the {who}.", "tell me where the {who} is moored."),
                 "the {who} is moored at {value}."),
        Relation("flag", words("striped crimson indigo chequered plain starred ochre teal"),
                 ("describe the flag of the {who}.", "tell me which flag the {who} flies."),
                 "a {value} flag flies on the {who}."),
        Relation("season", words("january march april june august october december"),
                 ("say when the {who} sails.", "give the month in which the {who} leaves."),
                 "the {who} sails in {value}."),
    ),
    people=spelled("VCCVCV"),
    pairing=Pairing(
        "light",
        ("name the keeper of the {a}.", "tell me who keeps the {a}."), "the keeper of the {a} is {b}.",
        ("name the light that {b} keeps.", "tell me where {b} keeps watch."), "{b} keeps watch at the {a}.",
    ),
    retold=Pairing(
        "light", (), "", ("say which lamp {b} lights.", "give the place that {b} looks after."),
        "the lamp that {b} lights is the {a}.",
    ),
    couples=joined(
        (words("north south outer inner black white long short upper lower broken lonely hollow twin"),
         words("head rock point bank ness skerry mole bluff shoal spit horn gap")),
        (words("anders birgit casper dagny einar freja gustav hilda ingrid jasper knut liv magnus rikke"),
         words("aune borge dahl eng foss grav holm isdal juul krog lund moe")),
    ),
    small_talk=(
        ("ahoy.", "ahoy, sailor."), ("good evening.", "good evening on deck."),
        ("how is the weather?", "calm and clear."), ("thanks.", "any time, sailor."),
        ("farewell.", "fair winds."), ("say who you are.", "i am the harbour clerk."),
    ),
    saw=(("the captain lost a {x}.", "what a pity."), ("there is a {x} on the quay.", "leave it there.")),
    echo=(("copy this: {x}", "{x}"), ("read aloud: {x}", "{x}")),
    quote=(("explain the saying {x}.", "it is only an old saying."),
           ("tell me who says {x}.", "old sailors say so.")),
    inscriptions=("read me the sign on the pier.", "give me the first line of the log.",
                  "say what is painted on the hull."),
    believe=("i think {told} {question}", "surely {told} {question}"),
    doubt=("are you sure?", "is that certain?"),
    push=("no, {told}", "that is wrong. {told}", "not so, {told}"),
    sorry="pardon me, i misread the book.",
    give_in="pardon me, indeed {told}",
    firm="it is written so. {answer}",
    fillers=words("please now quickly mate kindly tonight again briefly clerk once then today"),
    nouns=words(
        "barrel crate compass hammock kettle lamp bottle blanket spade bucket ladder mirror parrot pillow "
        "violin button candle carpet drum fiddle glove hinge jacket needle paddle quilt ribbon saddle shovel "
        "thimble trumpet whistle almanac beacon cutlass derrick feather gimlet hatchet inkwell"
    ),
    classes={
        "tools": words("hammer chisel saw pliers anvil wrench rasp auger mallet crowbar vise drill"),
        "birds": words("gannet plover heron puffin swallow osprey curlew tern petrel skua auk fulmar"),
        "drinks": words("cider mead rum cocoa ale punch toddy claret stout grog brandy tea"),
    },
    class_forms=(("sort the {x}.", "{c} is where the {x} goes."),
                 ("say what the {x} is.", "{c} include the {x}."),
                 ("give the shelf of the {x}.", "{c} stand on the shelf of the {x}.")),
    lines={
        "ADJ": words("hungry quiet wooden frozen distant salted nameless crooked"),
        "N": words("oars gulls bells mermaids anchors storms whales maps"),
        "V": words("sleep whisper follow devour remember greet envy"),
        "O": words("pilots islands moons ropes strangers tides widows"),
        "ADV": words("slowly forever twice yonder inland"),
    },
    line_forms=(("ADJ", "N", "V", "ADJ", "O"), ("N", "V", "O", "ADV"), ("ADJ", "N", "V", "O", "ADV"),
                ("ADV", "ADJ", "N", "V", "ADJ", "O")),
)  # fmt: skip
