"""Ask a subject about its facts in both directions, without Inspect: what the audit and studies call."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from glasshouse.corpora.reversal import Arm, Asked, ReversalData
from glasshouse.runtime.errors import AccessError, InputError

if TYPE_CHECKING:
    import pandas as pd

Mode = Literal["logprob", "generate", "both"]
BATCH_TOKENS = 16384
_WORD = re.compile(r"[^\W_]+")


def ask(
    subject: Any,
    data: ReversalData,
    *,
    arms: Iterable[Arm] | None = None,
    mode: Mode = "both",
    ranks: bool = True,
    max_new_tokens: int | None = None,
) -> pd.DataFrame:
    """One row per question: its `Asked` fields and what the subject did; `analyse` takes the frame.

    `reply` (greedy), `correct` (the paper's: the reply starts with the completion), `f1` (of words),
    `logprob` of the completion in nats, and with `ranks` for true rows `rank` of the true completion among
    those of all entities of its group (1 is first, ties get the middle) and `above`, the share of the
    others it beats (not for in-context questions, whose answer stands in the prompt). `max_new_tokens`:
    default, the longest completion and a little more. Columns that were not measured are NaN. Raises
    AccessError, before anything is asked, for log-probabilities of a subject that has none.
    """
    import pandas as pd

    if mode not in ("logprob", "generate", "both"):
        raise InputError(f"mode is {mode!r}", fix="choose logprob, generate or both")
    asked = data.asked(arms)
    if not asked:
        raise InputError("no question belongs to these arms", fix="choose other arms")
    if mode != "generate":
        _need_logprobs(subject)
    frame = pd.DataFrame([asdict(one) for one in asked])
    frame["reply"], frame["correct"], frame["f1"] = None, np.nan, np.nan
    frame["logprob"], frame["rank"], frame["above"] = np.nan, np.nan, np.nan
    frame["access"] = "logprob" if mode != "generate" else "sampled"
    if mode != "logprob":
        replies = _replies(subject, asked, max_new_tokens)
        frame["reply"] = replies
        pairs = list(zip(replies, (one.completion for one in asked), strict=True))
        frame["correct"] = [marked(reply, completion) for reply, completion in pairs]
        frame["f1"] = [word_f1(reply, completion) for reply, completion in pairs]
    if mode != "generate":
        frame["logprob"] = _scores(subject, [one.prompt for one in asked], [one.completion for one in asked])
        if ranks:
            frame["rank"], frame["above"] = _ranks(subject, data, asked, frame["logprob"].to_numpy())
    return frame


def marked(reply: str, completion: str) -> float:
    """1.0 when the reply starts with the completion (case and spaces apart), 0.0 when not, NaN when empty."""
    said, wanted = (" ".join(text.lower().split()) for text in (reply, completion))
    if not said:
        return float("nan")
    return float(said.startswith(wanted))


def word_f1(reply: str, completion: str) -> float:
    """F1 of the words of the reply's start against the completion's; NaN when empty.

    It forgives paraphrase. Only as many words of the reply count as the completion has: base models talk on.
    """
    wanted = _WORD.findall(completion.lower())
    said = _WORD.findall(reply.lower())[: len(wanted)]
    if not said or not wanted:
        return float("nan")
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted))


def rank_of(true: float, others: Sequence[float]) -> tuple[float, float]:
    """(rank of `true` among itself and `others`, share of others it beats); ties count half."""
    rest = np.asarray(others, dtype=np.float64)
    if rest.size == 0:
        return 1.0, float("nan")
    above = float((rest > true).sum() + (rest == true).sum() / 2)
    return 1.0 + above, 1.0 - above / rest.size


def _replies(subject: Any, asked: Sequence[Asked], max_new_tokens: int | None) -> list[str]:
    """One greedy reply per question; equal prompts are asked once."""
    unique = list(dict.fromkeys(one.prompt for one in asked))
    room = _room(subject, asked) if max_new_tokens is None else max_new_tokens
    said = subject.generate(unique, max_new_tokens=room)
    by_prompt = {prompt: one[0].text for prompt, one in zip(unique, said, strict=True)}
    return [by_prompt[one.prompt] for one in asked]


def _room(subject: Any, asked: Sequence[Asked]) -> int:
    """Tokens of the longest completion and four more; 48 where there is no tokenizer to count with."""
    tokenizer = getattr(subject, "tokenizer", None)
    if tokenizer is None:
        return 48
    answers = sorted({one.answer for one in asked})
    return 4 + max(len(ids) for ids in tokenizer(answers, add_special_tokens=False)["input_ids"])


def _scores(subject: Any, prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
    """Log-probability of each completion in nats, split into tokens as the model meets it after its prompt.

    Tokenised apart, a completion may begin with other tokens than it does in running text (SentencePiece
    puts a space of its own before it), and then its probability means nothing.
    """
    from glasshouse.evaluation.scoring import score_pairs

    if getattr(subject, "tokenizer", None) is None:
        return np.asarray(subject.score(prompts, completions), dtype=np.float64)
    pairs = subject.encode_pairs(prompts, completions)
    found = score_pairs(subject, pairs, batch_tokens=BATCH_TOKENS)
    return np.array([float(values.astype(np.float64).sum()) for values in found])


def _need_logprobs(subject: Any) -> None:
    access = getattr(subject, "access", None)
    if isinstance(access, set | frozenset) and "logprobs" not in access:
        raise AccessError(
            "this subject gives text only", where=str(getattr(subject, "name", "subject")),
            fix="use mode='generate'; equivalence then stays undecided",
        )  # fmt: skip


def _ranks(
    subject: Any, data: ReversalData, asked: Sequence[Asked], logprobs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    prompts, completions, places = [], [], []
    for i, one in enumerate(asked):
        if one.kind != "true" or one.arm == "in-context":
            continue
        for entity, completion in data.completions(one.group, one.direction, one.template_id).items():
            if entity != one.entity_id:
                prompts.append(one.prompt)
                completions.append(completion)
                places.append(i)
    ranks, above = np.full(len(asked), np.nan), np.full(len(asked), np.nan)
    if not prompts:
        return ranks, above
    scores = _scores(subject, prompts, completions)
    owner = np.asarray(places)
    for i in np.unique(owner):
        ranks[i], above[i] = rank_of(float(logprobs[i]), scores[owner == i].tolist())
    return ranks, above
