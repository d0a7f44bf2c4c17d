"""[annotators/6r] What judging costs besides the judge: lexical ratings, and our share of a stored LM call.

There is no peer in this comparison; the bounds are those of the specification: 10,000 x 8 lexical ratings in
less than 2 CPU seconds, less than 1 ms of ours per LM answer that is on disk already.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable

import numpy as np

from benchmarks.harness import Row
from benchmarks.ledger import Report

TEXTS, PREDICATES, WORDS, TERMS = 10_000, 8, 40, 20
STORED = 2_000
REPORT = Report("annotators/6r", "lexical, 10,000 x 8", "seconds", 1.0, ("glasshouse.annotators",))
NO_PEER = "no peer; bound of the specification: {}"


def compare(*, repeats: int, threads: int, cases: tuple[str, ...] = ()) -> list[Row]:
    """One row per case; `ours_seconds` of the second case is per stored call."""
    made = {
        "lexical, 10,000 x 8": (_lexical(), 1, "2 s"),
        "a stored LM answer": (_stored(), STORED, "0.001 s a call"),
    }
    rows = []
    for name, (run, calls, bound) in made.items():
        if cases and not any(case in name for case in cases):
            continue
        runs = tuple(_timed(run) / calls for _ in range(repeats))
        reason = NO_PEER.format(bound)
        rows.append(Row(name, "rate", min(runs), "-", None, None, None, None, reason, ours_runs=runs))
    return rows


def _lexical() -> Callable[[], object]:
    from glasshouse.annotators import LexicalAnnotator, Predicate, TermSet

    rng = np.random.default_rng(0)
    vocabulary = [f"w{i}" for i in range(3000)]
    texts = [" ".join(rng.choice(vocabulary, WORDS)) for _ in range(TEXTS)]
    asked = [
        Predicate(f"predicate {i}", TermSet(tuple(vocabulary[TERMS * i : TERMS * (i + 1)])))
        for i in range(PREDICATES)
    ]
    return lambda: LexicalAnnotator().rate(asked, texts)


def _stored() -> Callable[[], object]:
    """The second and later ratings of texts that a programmatic model has answered once."""
    from inspect_ai.model import ModelOutput, ModelUsage, get_model

    from glasshouse.annotators import LMAnnotator

    def answer(messages: object, tools: object, choice: object, config: object) -> ModelOutput:
        output = ModelOutput.from_content("mockllm/model", '{"answers": ["yes"]}')
        output.usage = ModelUsage(input_tokens=100, output_tokens=5, total_tokens=105)
        return output

    folder = tempfile.TemporaryDirectory()
    texts = [f"text number {i} " * 20 for i in range(STORED)]
    model = get_model("mockllm/model", custom_outputs=answer)
    LMAnnotator(model, folder=folder.name).rate(["is a text"], texts)

    def run(keep: object = folder) -> None:
        found = LMAnnotator(model, folder=folder.name).rate(["is a text"], texts)
        assert found.usage.calls == 0 and found.usage.cache_hits == STORED

    return run


def _timed(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start
