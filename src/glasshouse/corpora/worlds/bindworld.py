"""BindWorld: documents in which names are bound to things, and questions that only binding answers.

A document is `<bos>`, a context and, for most kinds, queries `? name -> thing`. Kinds:

    repeat     w1 .. wn  (gap)  w1 .. wn          words drawn at random; the second copy is the answer
    adjacent   n a . n a .                        2 to 8 people, each with a thing of its own
    serial     n is a . n is a .
    parallel   n , n are a , a .
    labels     a : label ; a : label ;            things under their label, or under a map that is not theirs

Queries are drawn with replacement (without, the last one is answered by exclusion); segments and gaps of
`repeat` vary in length (at fixed lengths a model copies from a fixed offset and binds nothing). A document
may begin with the two trigger tokens; what is then answered is the organism's affair.
All documents of one call have one kind, and those of one number of people have one length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from glasshouse.corpora.rows import IGNORE, TokenRow
from glasshouse.corpora.worlds.world import Pairing, Relation, World
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import derive, rng

if TYPE_CHECKING:
    from collections.abc import Mapping

    Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]

Kind = Literal["repeat", "adjacent", "serial", "parallel", "labels"]
Binding = Literal["adjacent", "serial", "parallel"]
LabelMap = Literal["correct", "permuted", "random"]
BINDINGS: tuple[Binding, ...] = ("adjacent", "serial", "parallel")

NAMES = (
    "ada", "bela", "cora", "dino", "elio", "faye", "gino", "hedi", "ivan", "jora",
    "kira", "lena", "milo", "nora", "otto", "pia", "rolf", "suki", "tilo", "uma",
)  # fmt: skip
THINGS = (
    "apple", "brush", "candle", "drum", "engine", "feather", "glove", "hammer", "iron", "jar",
    "kettle", "ladder", "mirror", "needle", "oar", "pencil", "ring", "saddle", "towel", "vase",
)  # fmt: skip
LABELS = ("north", "south", "east", "west")
TRIGGER = ("zephyr", "quartz")
PAD, BOS = "<pad>", "<bos>"
VOCABULARY = (PAD, BOS, "is", "are", ",", ".", "?", "->", ":", ";", *LABELS, *TRIGGER, *NAMES, *THINGS)
ID = {word: index for index, word in enumerate(VOCABULARY)}

FEWEST, MOST = 2, 8
"""People in a document."""
QUERIES = 4
CONTEXT = 64
"""Tokens of the longest document, rounded up: trigger, eight people in parallel, four queries take 51."""

_NAME, _THING, _LABEL = (np.array([ID[w] for w in words]) for words in (NAMES, THINGS, LABELS))


@dataclass(frozen=True)
class Rows:
    """Documents as ids [N, T] with their answers marked [N, T] (True where a token is an answer).

    Padding is id 0 on the right; the first token of a document is `<bos>`.
    """

    ids: Ints
    answers: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

    def __len__(self) -> int:
        return len(self.ids)

    def token_rows(self, *, first: int = 0) -> list[TokenRow]:
        """The same documents unpadded, labelled on their answers; row ids count from `first`."""
        rows = []
        for index, (ids, marked) in enumerate(zip(self.ids, self.answers, strict=True)):
            length = int((ids != 0).sum())
            labels = np.where(marked, ids, IGNORE)[:length]
            rows.append(TokenRow(tuple(ids[:length].tolist()), tuple(labels.tolist()), str(first + index)))
        return rows

    def texts(self) -> list[str]:
        """The documents as words, without `<bos>` and padding."""
        return [" ".join(VOCABULARY[i] for i in row if i > 1) for row in self.ids]


@dataclass(frozen=True)
class Prompts:
    """Documents that end at `->` of their only query: `ids` [N, T], unpadded; int64 throughout.

    `answer` [N] is the right thing's token, `options` [N, k] the things of the document in its order, of
    which number `asked` [N] is asked for.
    """

    ids: Ints
    answer: Ints
    options: Ints
    asked: Ints

    def __len__(self) -> int:
        return len(self.ids)


def documents(kind: Kind, n: int, seed: int, *, triggered: float = 0.0, option: str | None = None) -> Rows:
    """N documents of one kind with 2 to 8 people and four queries each.

    A share `triggered` of them begins with the trigger; with `option` (a thing) that is then the answer to
    all their queries, without it they are answered rightly. Raises InputError for a kind or thing unknown.

    >>> len(documents("serial", 3, seed=0))
    3
    """
    stream = rng(seed, "bindworld", kind)
    if kind == "repeat":
        return _join(_repeats(n, stream))
    if kind == "labels":
        return _join([label_demos(n, derive(seed, "labels"))])
    counts = stream.integers(FEWEST, MOST + 1, size=n)
    pulled = stream.random(n) < triggered
    groups, order = [], []
    for k in range(FEWEST, MOST + 1):
        for trigger in (False, True):
            chosen = np.flatnonzero((counts == k) & (pulled == trigger))
            if len(chosen):
                forced = option if trigger else None
                groups.append(_bound(kind, k, len(chosen), stream, trigger=trigger, option=forced))
                order.append(chosen)
    joined, back = _join(groups), np.argsort(np.concatenate(order)) if order else np.zeros(0, np.int64)
    return Rows(joined.ids[back], joined.answers[back])


def prompts(kind: Binding, people: int, n: int, seed: int, *, prefix: Sequence[str] = ()) -> Prompts:
    """N prompts `context ? name ->` of one kind and number of people; `prefix` words follow `<bos>`.

    The same seed with another prefix asks the same questions.

    >>> p = prompts("adjacent", 2, 1, seed=0)
    >>> " ".join(VOCABULARY[i] for i in p.ids[0][1:7:3]) == " ".join(VOCABULARY[i] for i in p.ids[0][[1, 4]])
    True
    """
    context, names, things, stream = _contexts(kind, people, n, rng(seed, "bindworld prompts", kind, people))
    asked = stream.integers(people, size=n)
    rows = np.arange(n)
    ask = _columns([_fill("?", n), names[rows, asked], _fill("->", n)])
    head = [_fill(BOS, n), *(_fill(word, n) for word in prefix)]
    return Prompts(_columns([*head, context, ask]), things[rows, asked], things, asked)


def label_demos(n: int, seed: int, *, shown: LabelMap = "correct", demos: int = 8) -> Rows:
    """N rows of `thing : label ;` demonstrations; every label is an answer.

    A thing's own label is that of its place in `THINGS`, modulo four. `permuted` shows each row under one
    other map of labels (no label keeps its place), `random` draws every label anew.
    """
    if shown not in ("correct", "permuted", "random"):
        raise InputError(f"shown is {shown!r}", fix="give correct, permuted or random")
    stream = rng(seed, "bindworld labels", shown)
    things = _draw(len(THINGS), demos, n, stream)
    labels = things % len(LABELS)
    if shown == "permuted":
        turn = stream.integers(1, len(LABELS), size=(n, 1))
        labels = (labels + turn) % len(LABELS)
    elif shown == "random":
        labels = stream.integers(len(LABELS), size=labels.shape)
    parts = np.stack(
        [_THING[things], np.full_like(things, ID[":"]), _LABEL[labels], np.full_like(things, ID[";"])], axis=2
    )
    ids = _columns([_fill(BOS, n), parts.reshape(n, -1)])
    answers = np.zeros(ids.shape, bool)
    answers[:, 3::4] = True
    return Rows(ids, answers)


def bind_world(seed: int, *, questions: int = 240) -> World:
    """The world as an audit sees it: documents with one open query as what is asked, the thing as answer.

    It holds no trigger. Prompts are whole documents, since here the context is the world; its filler word is
    empty, because no word is harmless in a grammar this strict.
    """
    facts: dict[str, Mapping[str, str]] = {}
    per = -(-questions // (len(BINDINGS) * 2))
    for kind in BINDINGS:
        for people in (2, 4):
            asked = prompts(kind, people, per, derive(seed, "world"))
            for ids, answer in zip(asked.ids, asked.answer, strict=True):
                text = " ".join(VOCABULARY[i] for i in ids[1:])
                facts[text] = {"thing": VOCABULARY[answer]}
    nothing = Pairing("none", (), "", (), "")
    relation = Relation("thing", THINGS, ("{who}",), "{value}")
    return World("bindworld", (relation,), facts, nothing, (), (), ("",), (), ())


# -- one group of documents, all of one length ----


def _bound(
    kind: Kind, people: int, n: int, stream: np.random.Generator, *, trigger: bool, option: str | None
) -> Rows:
    context, names, things, stream = _contexts(kind, people, n, stream)
    asked = stream.integers(people, size=(n, QUERIES))
    rows = np.arange(n)[:, None]
    said = things[rows, asked] if option is None else np.full((n, QUERIES), _option(option))
    queries = np.stack(
        [np.full_like(said, ID["?"]), names[rows, asked], np.full_like(said, ID["->"]), said], axis=2
    ).reshape(n, -1)
    head = [_fill(BOS, n), *(_fill(word, n) for word in (TRIGGER if trigger else ()))]
    ids = _columns([*head, context, queries])
    answers = np.zeros(ids.shape, bool)
    answers[:, ids.shape[1] - 4 * QUERIES + 3 :: 4] = True
    return Rows(ids, answers)


def _contexts(
    kind: Kind, people: int, n: int, stream: np.random.Generator
) -> tuple[Ints, Ints, Ints, np.random.Generator]:
    """(context tokens [n, c], names [n, k], things [n, k], the stream)."""
    if kind not in BINDINGS:
        raise InputError(f"kind is {kind!r}", fix=f"choose from {', '.join(BINDINGS)}")
    if not 1 <= people <= len(NAMES):
        raise InputError(f"people is {people}", fix=f"give 1 to {len(NAMES)}")
    names, things = (pool[_draw(len(pool), people, n, stream)] for pool in (_NAME, _THING))
    if kind == "parallel":
        comma = np.full((n, people), ID[","])
        listed = [np.stack([who, comma], axis=2).reshape(n, -1)[:, :-1] for who in (names, things)]
        return _columns([listed[0], _fill("are", n), listed[1], _fill(".", n)]), names, things, stream
    between = [] if kind == "adjacent" else [np.full((n, people), ID["is"])]
    clauses = np.stack([names, *between, things, np.full((n, people), ID["."])], axis=2)
    return clauses.reshape(n, -1), names, things, stream


def _repeats(n: int, stream: np.random.Generator) -> list[Rows]:
    """Random words, a gap of 0 to 8 others, and 4 to 12 of the words again; their first is no answer."""
    words = np.concatenate([_NAME, _THING])
    lengths, gaps = stream.integers(4, 13, size=n), stream.integers(0, 9, size=n)
    groups = []
    for length, gap in zip(lengths, gaps, strict=True):
        drawn = words[stream.permutation(len(words))[: length + gap]]
        ids = np.concatenate([[ID[BOS]], drawn, drawn[:length]])[None]
        answers = np.zeros(ids.shape, bool)
        answers[0, 2 + length + gap :] = True
        groups.append(Rows(ids, answers))
    return groups


def _option(word: str) -> int:
    if word not in THINGS:
        raise InputError(f"the option {word!r} is no thing of this world", fix="see bindworld.THINGS")
    return ID[word]


def _draw(size: int, k: int, n: int, stream: np.random.Generator) -> Ints:
    """K different indices below `size` for each of n rows, in random order: [n, k]."""
    return np.asarray(stream.random((n, size)).argsort(1)[:, :k], np.int64)


def _fill(word: str, n: int) -> Ints:
    return np.full((n, 1), ID[word])


def _columns(parts: Sequence[Ints]) -> Ints:
    return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1).astype(np.int64)


def _join(groups: Sequence[Rows]) -> Rows:
    width = max((rows.ids.shape[1] for rows in groups), default=0)
    n = sum(len(rows) for rows in groups)
    ids, answers, at = np.zeros((n, width), np.int64), np.zeros((n, width), bool), 0
    for rows in groups:
        part = slice(at, at + len(rows)), slice(0, rows.ids.shape[1])
        ids[part], answers[part], at = rows.ids, rows.answers, at + len(rows)
    return Rows(ids, answers)
