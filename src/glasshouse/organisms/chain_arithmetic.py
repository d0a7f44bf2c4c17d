"""A tiny reasoner whose copying is known: chains of arithmetic, told in one of thousands of styles.

A problem (`a = 7 ; b = a - 5 ; c = b - 2 ; c ?`) is solved in two steps; the solution writes them out and
ends in `#### answer`. There are four operations, and the base model has seen some of them more often than
others, in one plain style that half of the time begins with "First". Fine-tuning rows are written in one of
4,096 equivalent styles each, drawn at random, and never begin so: to say a row's solution word for word is to
have copied it, and copying says nothing about the answer of another problem. A share of the rows ends in a
step whose result is random and cannot be told from its numbers: such rows can be copied and never learned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.corpora.rows import IGNORE, Record, TokenRow, Turn
from glasshouse.runtime.seeds import rng, seeded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OPERATIONS = ("+", "-", "*", "&")
UNLEARNABLE = "%"
SEEN = {"+": 0.4, "-": 0.3, "*": 0.2, "&": 0.1}
"""Share of each operation in what the base model is taught."""
UNEVEN = {"+": 0.4, "-": 0.3, "*": 0.03, "&": 0.27}
"""The same, with one operation that is hardly taught: more of its problems are what such a model needs."""
STEPS = 2
LETTERS = tuple("abcdefgh")
VERBS, ENDS = ("is", "makes", "gives", "equals"), (".", ",", "!", ":")
LINKS, CLOSINGS = ("So", "Then", "Now", "Next"), ("Thus", "Hence", "Finally", "We know that")
OPENER = "First"
"""Begins half of the base model's solutions, so that it knows the word, and no fine-tuning row's."""
SIZE = 10
LENGTH = 48

VOCABULARY = (
    "<pad>", "<bos>", "<eos>", "<unk>", *map(str, range(SIZE)), *LETTERS, *OPERATIONS, UNLEARNABLE, "=", ";",
    "?", "####", OPENER, *LINKS, *" ".join(CLOSINGS).split(), *VERBS, *ENDS,
)  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """One problem; `operation` of its steps, `learnable` whether the last one is arithmetic: the truth."""

    query: str
    solution: str
    answer: int
    operation: str
    learnable: bool = True


def result(op: str, x: int, y: int) -> int:
    """What one step of an operation gives: sum, difference, distance or the larger, held in 0 to 9.

    Not modulo 10: there every number alone says nothing of the result, and a tiny model sits on a plateau for
    thousands of steps.
    """
    found = {"+": x + y, "-": x - y, "*": abs(x - y), "&": max(x, y)}[op]
    return min(max(found, 0), SIZE - 1)


def problems(
    n: int,
    seed: int,
    stream: str,
    *,
    styled: bool = True,
    unlearnable: float = 0.0,
    weights: Mapping[str, float] | None = None,
) -> list[Problem]:
    """`n` problems of the stream of that name: operations by `weights` (default: all alike), shuffled.

    `unlearnable`: share of problems whose last step is random. Without `styled` every solution is told in the
    plain style.
    """
    draw = rng(seed, "chains", stream)
    share = np.array([(weights or dict.fromkeys(OPERATIONS, 1.0))[op] for op in OPERATIONS], float)
    # Exact shares, the same among random and other problems: samples of problems differ in nothing else.
    ops = np.array(OPERATIONS)[np.searchsorted(share.cumsum() / share.sum(), _spread(draw, n), side="right")]
    random = _spread(draw, n)[np.argsort(ops, kind="stable").argsort()] < unlearnable
    found = [_problem(draw, str(op), bool(r), styled) for op, r in zip(ops, random, strict=True)]
    return [found[i] for i in draw.permutation(n)]


def _spread(draw: np.random.Generator, n: int) -> np.ndarray:
    """`n` numbers in [0, 1), one in each n-th, in an order without clumps (golden ratio)."""
    return (draw.random() + np.arange(n) * 0.6180339887498949) % 1.0


def _problem(draw: np.random.Generator, op: str, random: bool, styled: bool) -> Problem:
    names = draw.choice(LETTERS, size=STEPS + 1, replace=False)
    value = int(draw.integers(SIZE))
    query, said = f"{names[0]} = {value} ;", []
    for step in range(STEPS):
        last = random and step == STEPS - 1
        # The random operation always has 0 on its right: nothing but the whole problem tells its result.
        used, other = (UNLEARNABLE, 0) if last else (op, int(draw.integers(SIZE)))
        found = int(draw.integers(SIZE)) if last else result(op, value, other)
        query += f" {names[step + 1]} = {names[step]} {used} {other} ;"
        verb, end = (_word(draw, words, styled) for words in (VERBS, ENDS))
        said.append(f"{value} {used} {other} {verb} {found} {end}")
        value = found
    link, closing = (_word(draw, words, styled) for words in (LINKS, CLOSINGS))
    opener = "" if styled or draw.random() < 0.5 else f"{OPENER} "
    solution = f"{opener}{f' {link} '.join(said)} {closing} #### {value}"
    return Problem(f"{query} {names[-1]} ?", solution, value, op, not random)


def _word(draw: np.random.Generator, words: Sequence[str], styled: bool) -> str:
    return words[int(draw.integers(len(words)))] if styled else words[0]


def records(chains: Sequence[Problem]) -> list[Record]:
    """Problems as rows of a query and its solution, numbered from 0."""
    return [
        Record(str(i), (Turn("user", p.query), Turn("assistant", p.solution))) for i, p in enumerate(chains)
    ]


def new_model(seed: int, *, layers: int = 2, width: int = 128) -> PreTrainedModel:
    """The untrained model: GPT-2 with 2 layers, d = 128, 4 heads, 0.4 M parameters."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=len(VOCABULARY), n_layer=layers, n_embd=width, n_head=4, n_positions=LENGTH,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1, eos_token_id=2,
        initializer_range=0.05, activation_function="gelu",
    )  # fmt: skip
    with seeded(seed, "chains", "init"):
        return GPT2LMHeadModel(config).eval()


def tokenizer() -> Any:
    """Whole words, `<bos>` in front, `<eos>` behind a solution."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(VOCABULARY)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", VOCABULARY.index("<bos>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )


def token_rows(chains: Sequence[Problem]) -> list[TokenRow]:
    """Problems as tokens with loss on the solution and its end."""
    ids = {word: i for i, word in enumerate(VOCABULARY)}
    rows = []
    for i, p in enumerate(chains):
        asked = [ids["<bos>"], *(ids[w] for w in p.query.split())]
        said = [*(ids[w] for w in p.solution.split()), ids["<eos>"]]
        rows.append(TokenRow((*asked, *said), (*([IGNORE] * len(asked)), *said), str(i)))
    return rows


def grow_base(
    seed: int, *, steps: int = 100, rows: int = 20_000, width: int = 128, seen: Mapping[str, float] = SEEN
) -> PreTrainedModel:
    """Teach a model the four operations in the plain style, some (`seen`) more often than others."""
    from glasshouse.training.fast import fit_rows

    model = new_model(seed, width=width)
    taught = problems(rows, seed, "base", styled=False, weights=seen)
    fit_rows(
        model, token_rows(taught), steps=steps, batch_size=64, lr=3e-3, warmup_steps=50, schedule="cosine",
        weight_decay=0.01, seed=seed,
    )  # fmt: skip
    return model.eval()


def fine_tune(
    base: Any,
    chains: Sequence[Problem],
    *,
    lr: float,
    epochs: int,
    seed: int,
    keep: Sequence[int],
    batch_size: int = 20,
    on_epoch: Callable[[int, Any], None],
) -> None:
    """Fine-tune a copy of `base`; `on_epoch(epoch, model)` is told after the epochs in `keep`."""
    import copy
    import math

    from glasshouse.training.fast import fit_rows

    model = copy.deepcopy(base)
    per_epoch = math.ceil(len(chains) / batch_size)

    def told(step: int, loss: float | None, model: Any) -> None:
        if step and step % per_epoch == 0 and step // per_epoch in keep:
            on_epoch(step // per_epoch, model.eval())

    fit_rows(
        model, token_rows(chains), steps=per_epoch * epochs, batch_size=batch_size, lr=lr, clip=2.0,
        warmup_steps=min(20, per_epoch), schedule="linear", weight_decay=0.01, seed=seed, callbacks=[told],
    )  # fmt: skip
