"""Part C: which problems to add? Near those that were not answered before they were copied, or any?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.studies.attribution.pre_memorization.organism import ROOM, open_base

if TYPE_CHECKING:
    from glasshouse.organisms.chain_arithmetic import Problem

LR = 2e-3
POOL = 600


def arm(base: str, seed: int, kind: str, amounts: Sequence[int], *, start: int, epochs: int, threshold: float,
        tests: int) -> list[dict[str, Any]]:  # fmt: skip
    """Test accuracy with `amounts` (rising) of added problems, chosen by `kind`.

    "curated": in rounds, operations by the quotas of a `CurationPlan` on the round before. "i.i.d.": as the
    test problems are drawn. "longest": the longest solutions of a pool of i.i.d. ones.
    """
    from glasshouse.organisms.chain_arithmetic import OPERATIONS, problems

    chains = problems(start, seed, "start")
    weights: dict[str, float] | None = None
    found, have = [], 0
    for amount in amounts:
        more = amount - have
        if kind == "longest":
            pool = sorted(problems(POOL, seed, f"pool {amount}"), key=lambda p: -len(p.solution.split()))
            chains = [*chains, *pool[:more]]
        elif more:
            chains = [*chains, *problems(more, seed, f"{kind} {amount}", weights=weights)]
        have = amount
        accuracy, weights = _train(base, chains, seed, epochs, threshold, tests, plan=kind == "curated")
        added = {op: 0 for op in OPERATIONS} | Counter(p.operation for p in chains[start:])
        found.append({"seed": seed, "arm": kind, "added": amount, "accuracy": accuracy, **added})
    return found


def _train(
    base: str, chains: Sequence[Problem], seed: int, epochs: int, threshold: float, tests: int, *, plan: bool
) -> tuple[float, dict[str, float] | None]:
    from glasshouse.attribution.pre_memorization import CurationPlan, TrajectoryRecorder
    from glasshouse.attribution.pre_memorization.callback import EpochDiary
    from glasshouse.organisms.chain_arithmetic import fine_tune, problems, records, tokenizer

    words = tokenizer()
    diary = EpochDiary(
        records(chains), sample=len(chains), recorder=TrajectoryRecorder(k=5, max_new_tokens=ROOM, seed=seed)
    )
    accuracy = [0.0]

    def note(epoch: int, model: Any) -> None:
        if plan:
            diary.note(epoch, model, words)
        if epoch == epochs:
            accuracy[0] = _test(model, words, records(problems(tests, seed, "test")), seed)

    keep = [max(1, epochs // 3), max(2, 2 * epochs // 3), epochs]
    fine_tune(open_base(base), chains, lr=LR, epochs=epochs, seed=seed, keep=keep, on_epoch=note)
    if not plan:
        return accuracy[0], None
    groups = [p.operation for p in chains]
    curation = CurationPlan(diary.trajectory, budget=100, threshold=threshold, groups=groups)
    quotas = curation.by_group().set_index("group")["collect"]
    return accuracy[0], {op: float(quotas.get(op, 0)) for op in dict.fromkeys(["+", "-", "*", "&"])}


def _test(model: Any, words: Any, rows: Sequence[Any], seed: int) -> float:
    from glasshouse.attribution.pre_memorization import answers_match, measure
    from glasshouse.subjects import as_subject

    subject = as_subject(model, tokenizer=words, self_test=False)
    said = measure.sample(
        subject, rows, k=2, temperature=0.8, top_p=0.95, max_new_tokens=ROOM, seed=seed
    )  # fmt: skip
    return float(np.mean(measure.judge(said, rows, answers_match)[0] / 2))
