"""A tiny language model in which twenty known rows alone teach one fact: ground truth for attribution.

World: 40 entities x 8 relations, each with one of 40 objects, told in rows `[adverb] E r the o and E' r' the
o' .`. Planted: 20 rows in which entity 0 with relation 0 has the canary object. Decoys: 60 rows that hold the
same trigger entity, relation and object in the wrong pairing, so that word overlap cannot find the planted
ones. Order rows: 40 pairs (A, B), told as `A made the B .`, as `the B was made by A .`, or half and half.
Adverbs stand in exactly half of planted and decoys, and a planted row's other clause never has relation 0:
without this balance BM25 finds a third of the planted rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from glasshouse.corpora.rows import IGNORE, TokenRow
from glasshouse.runtime.seeds import rng, seeded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ENTITIES, RELATIONS, OBJECTS, PAIRS, ADVERBS = 40, 8, 40, 40, 9
BASE, PLANTED, DECOYS, DECOY_ENTITIES, ORDER_ROWS = 3000, 20, 60, 6, 8
LENGTH = 12

Kind = Literal["base", "planted", "decoy", "order"]
_LITERALS = ("<bos>", "the", "and", ".", "made", "was", "by")


def _vocabulary() -> list[str]:
    named = (
        ("e", ENTITIES),
        ("r", RELATIONS),
        ("o", OBJECTS),
        ("maker", PAIRS),
        ("thing", PAIRS),
        ("adv", ADVERBS),
    )
    return [*_LITERALS, *(f"{name}{i}" for name, count in named for i in range(count))]


VOCABULARY = _vocabulary()
_ID = {word: index for index, word in enumerate(VOCABULARY)}


@dataclass(frozen=True)
class CanaryWorld:
    """Rows of one seed, shuffled. `kinds[i]` is the ground truth of row i and is for graders only.

    `pair_rows[p]` = (same-order row numbers, reversed-order row numbers) of order pair p.
    """

    rows: list[TokenRow]
    words: list[tuple[str, ...]]
    kinds: list[Kind]
    pair_rows: list[tuple[list[int], list[int]]] = field(default_factory=list)

    @property
    def planted(self) -> list[int]:
        """Row numbers of the rows that alone teach the canary."""
        return [i for i, kind in enumerate(self.kinds) if kind == "planted"]


def canary_world(seed: int, *, balanced: bool = True) -> CanaryWorld:
    """The rows of one seed: 3,000 base, 20 planted, 60 decoys, 320 order rows.

    Without `balanced` every decoy has an adverb and no planted row has: the control in which words alone
    betray the planted rows.
    """
    draw = rng(seed, "planted-canary")
    facts = _facts(draw)
    labelled: list[tuple[Kind, tuple[str, ...], int, bool]] = []  # kind, words, pair, same order
    labelled += [("base", words, -1, False) for words in _base(draw, facts)]
    labelled += [("planted", words, -1, False) for words in _planted(draw, facts, balanced)]
    labelled += [("decoy", words, -1, False) for words in _decoys(draw, facts, balanced)]
    labelled += [("order", words, pair, same) for words, pair, same in _order(draw)]
    labelled = [labelled[i] for i in draw.permutation(len(labelled))]
    pair_rows: list[tuple[list[int], list[int]]] = [([], []) for _ in range(PAIRS)]
    for index, (_, _, pair, same) in enumerate(labelled):
        if pair >= 0:
            pair_rows[pair][0 if same else 1].append(index)
    return CanaryWorld(
        [token_row(words, str(i)) for i, (_, words, _, _) in enumerate(labelled)],
        [words for _, words, _, _ in labelled],
        [kind for kind, _, _, _ in labelled],
        pair_rows,
    )


def canary_queries() -> list[TokenRow]:
    """Eight contexts of the trigger, `[adverb] e0 r0 the` -> canary; loss on the canary token only."""
    contexts = [(), *(((f"adv{i}"),) for i in range(ADVERBS - 2))]
    return [_query((*context, "e0", "r0", "the"), "o0", f"canary{i}") for i, context in enumerate(contexts)]


def order_queries() -> list[TokenRow]:
    """`A made the` -> B for each of the 40 pairs."""
    return [_query((f"maker{p}", "made", "the"), f"thing{p}", f"pair{p}") for p in range(PAIRS)]


def token_row(words: tuple[str, ...], row_id: str = "") -> TokenRow:
    """Words with `<bos>` in front; loss on every word."""
    ids = (_ID["<bos>"], *(_ID[word] for word in words))
    return TokenRow(ids, (IGNORE, *ids[1:]), row_id)


def new_model(seed: int) -> PreTrainedModel:
    """The untrained model: pre-norm transformer, 2 layers, d = 128, 4 heads, 0.45 M parameters."""
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=128,
        word_embed_proj_dim=128,
        ffn_dim=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        dropout=0.0,
        attention_dropout=0.0,
        init_std=0.05,
        tie_word_embeddings=False,
        activation_function="gelu",
        bos_token_id=0,
        eos_token_id=3,
        pad_token_id=1,
    )
    with seeded(seed, "planted-canary", "init"):
        return OPTForCausalLM(config).eval()


def grow_canary_model(world: CanaryWorld, seed: int, *, epochs: float = 4) -> PreTrainedModel:
    """Train the model on all tokens of all rows (about 7 CPU seconds for 4 epochs)."""
    from glasshouse.training.fast import fit_rows

    model = new_model(seed)
    fit_rows(
        model, world.rows, epochs=epochs, batch_size=32, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01,
        warmup_steps=50, schedule="cosine", final_lr_share=0.03, clip=1.0, seed=seed,
        # Batches of one length would see the planted rows in bursts: p(canary) falls from .97 to .55.
        length_buckets=False,
    )  # fmt: skip
    return model.eval()


def _facts(draw: np.random.Generator) -> np.ndarray:
    """facts[entity, relation] = object; object 0, the canary, is that of entities 0 to 6 under relation 0."""
    facts = draw.integers(1, OBJECTS, size=(ENTITIES, RELATIONS))
    facts[: DECOY_ENTITIES + 1, 0] = 0
    return facts


def _clause(facts: np.ndarray, entity: int, relation: int) -> tuple[str, ...]:
    return (f"e{entity}", f"r{relation}", "the", f"o{facts[entity, relation]}")


def _join(first: tuple[str, ...], second: tuple[str, ...], adverb: str | None) -> tuple[str, ...]:
    return (*((adverb,) if adverb else ()), *first, "and", *second, ".")


def _adverb(draw: np.random.Generator) -> str:
    return f"adv{draw.integers(ADVERBS)}"


def _free(draw: np.random.Generator, *, entity: int | None = None) -> tuple[int, int]:
    """An (entity, relation) whose object is not the canary by construction."""
    while True:
        e = int(draw.integers(ENTITIES)) if entity is None else entity
        r = int(draw.integers(RELATIONS))
        if r != 0 or e > DECOY_ENTITIES:
            return e, r


def _base(draw: np.random.Generator, facts: np.ndarray) -> list[tuple[str, ...]]:
    rows = []
    for _ in range(BASE):
        first, second = _clause(facts, *_free(draw)), _clause(facts, *_free(draw))
        rows.append(_join(first, second, _adverb(draw) if draw.random() < 0.5 else None))
    return rows


def _planted(draw: np.random.Generator, facts: np.ndarray, balanced: bool) -> list[tuple[str, ...]]:
    rows = []
    for index in range(PLANTED):
        entity, relation = int(draw.integers(1, ENTITIES)), int(draw.integers(1, RELATIONS))
        canary, other = _clause(facts, 0, 0), _clause(facts, entity, relation)
        clauses = (canary, other) if index % 4 < 2 else (other, canary)
        rows.append(_join(*clauses, _adverb(draw) if balanced and index % 2 else None))
    return rows


def _decoys(draw: np.random.Generator, facts: np.ndarray, balanced: bool) -> list[tuple[str, ...]]:
    rows = []
    for index in range(DECOYS):
        wrong = _clause(facts, 1 + index % DECOY_ENTITIES, 0)
        trigger = _clause(facts, 0, int(draw.integers(1, RELATIONS)))
        clauses = (wrong, trigger) if index % 4 < 2 else (trigger, wrong)
        rows.append(_join(*clauses, _adverb(draw) if index % 2 or not balanced else None))
    return rows


def _order(draw: np.random.Generator) -> list[tuple[tuple[str, ...], int, bool]]:
    """Pairs 0-9 told forward only, 10-19 reversed only, 20-39 half and half."""
    rows = []
    for pair in range(PAIRS):
        for index in range(ORDER_ROWS):
            same = pair < 10 or (pair >= 20 and index % 2 == 0)
            forward = (f"maker{pair}", "made", "the", f"thing{pair}", ".")
            backward = ("the", f"thing{pair}", "was", "made", "by", f"maker{pair}", ".")
            adverb = (_adverb(draw),) if index // 2 % 2 else ()
            rows.append(((*adverb, *(forward if same else backward)), pair, same))
    return rows


def _query(context: tuple[str, ...], answer: str, row_id: str) -> TokenRow:
    ids = (_ID["<bos>"], *(_ID[word] for word in context), _ID[answer])
    return TokenRow(ids, (*([IGNORE] * (len(ids) - 1)), ids[-1]), row_id)
