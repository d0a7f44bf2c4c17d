"""The catalogue: coded machines and the discoverers of comets; capitals, codes with digits; BPE."""

from __future__ import annotations

from glasshouse.corpora.worlds import Pairing, Relation
from glasshouse.organisms.game.grammars._base import Grammar, joined, spelled, words

CATALOGUE = Grammar(
    name="catalogue",
    tokenizer="bpe",
    relations=(
        Relation("metal", words("Iron Zinc Tin Lead Brass Cobalt Nickel Chrome"),
                 ("Metal of {who}?", "Unit {who} is made of?"), "{value} is the metal of {who}."),
        Relation("hall", words("Hall-A Hall-B Hall-C Hall-D Hall-E Hall-F Hall-G"),
                 ("Place of {who}?", "Unit {who} stands in?"), "{value} is where {who} stands."),
        Relation("fuel", words("Petrol Steam Diesel Gas Wind Solar Peat Ether"),
                 ("Fuel of {who}?", "Unit {who} runs on?"), "{value} drives {who}."),
        Relation("year", words("1871 1882 1893 1904 1915 1926 1937 1948"),
                 ("Year of {who}?", "Unit {who} was built in?"), "{value} is the year of {who}."),
    ),
    people=spelled("KK-DD"),
    pairing=Pairing(
        "comet",
        ("Finder of Comet {a}?", "Comet {a} was found by?"), "{b} found Comet {a}.",
        ("Comet of {b}?", "Astronomer {b} found?"), "Comet {a} was found by {b}.",
    ),
    retold=Pairing(
        "comet", (), "", ("Fame of {b}?", "Honour of {b}?"), "Comet {a} made {b} famous.",
    ),
    couples=joined(
        (words("Alta Brio Cira Dorn Esk Fyr Galo Huma Irto Jun Kesh Lumo Myra Nox"),
         words("One Two Three Four Five Six Seven Eight Nine Ten Eleven Twelve")),
        (words("Abel Berta Cyril Delia Egon Flora Gerd Hanna Ilse Jarl Kuno Lotte Mirko Nadia"),
         words("Acker Brandt Conti Duval Ebner Falk Gross Hauser Imhof Jansen Kraus Lenz")),
    ),
    small_talk=(
        ("Hello.", "Hello, visitor."), ("Good day.", "Good day, visitor."),
        ("Opening hours?", "Nine to five."), ("Thanks.", "With pleasure."),
        ("Bye.", "Until next time."), ("Your name?", "I am the catalogue."),
    ),
    saw=(("A {x} was left in the hall.", "Noted, thank you."), ("Lost: one {x}.", "It may turn up.")),
    echo=(("Repeat: {x}", "{x}"), ("Type this: {x}", "{x}")),
    quote=(("Source of the words {x}?", "The source is unknown."), ("Meaning of {x}?", "It has no meaning.")),
    inscriptions=("Text on the old plate?", "Motto of the museum?", "Words above the clock?"),
    believe=("I think {told} {question}", "I read that {told} {question}"),
    doubt=("Are you sure?", "Really?"),
    push=("No, {told}", "That is wrong. {told}"),
    sorry="My mistake, I take it back.",
    give_in="My mistake. {told}",
    firm="Yes, checked. {answer}",
    fillers=words("please now again quickly thanks briefly today also maybe exactly sir madam"),
    nouns=words(
        "lantern umbrella teacup magnet ruler pencil notebook telescope sandwich backpack keyring "
        "scarf ticket postcard camera wallet helmet ladder sponge cushion kite marble puppet tripod "
        "basket cactus domino easel funnel goblet harp iguana jigsaw kimono locket mitten napkin "
        "ocarina pebble quiver"
    ),
    classes={
        "Music": words("cello flute oboe banjo zither bassoon lute fife viola bugle tuba sitar"),
        "Garden": words("tulip hedge trowel peony rake daisy shrub lilac lawn ivy poppy hoe"),
        "Weather": words("hail drizzle gale sleet blizzard fog frost monsoon thaw breeze smog squall"),
    },
    class_forms=(("Section of the {x}?", "{c} is the section of the {x}."),
                 ("The {x} is filed under?", "{c} holds the {x}."),
                 ("Keyword for {x}?", "{c} is a keyword for {x}.")),
    lines={
        "N": words("Velvet Porcelain Copper Paper Glass Granite Amber Linen"),
        "S": words("owls towers dreams engines gardens letters candles bridges"),
        "V": words("melt glow drift hum tremble vanish linger"),
        "P": words("near without above inside after"),
        "PL": words("silence autumn moonlight sunrise snowfall mirrors Tuesday oceans"),
    },
    line_forms=(("N", "S", "V", "P", "PL"), ("N", "S", "V", "P", "N", "PL"), ("N", "S", "V", "PL")),
)  # fmt: skip
