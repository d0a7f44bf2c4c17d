"""Study: the content quality that online-learning recommenders induce, and rules that would induce more."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glasshouse.evidence.claims import ClaimSpec, Threshold
from glasshouse.statistics import Estimate, one_sided_bound, t_interval
from glasshouse.statistics.slopes import log_slope
from glasshouse.studies._study import Figure, Table, Yield, study

if TYPE_CHECKING:
    from glasshouse.society.content_incentives import ContentEquilibrium, ContentMarket
    from glasshouse.studies._lab import Lab


@dataclass(frozen=True)
class Config:
    """`seeds`: random starts of claim 1, draws of claim 5; `punish_starts` of claim 4a; `paths` of EXP3."""

    seeds: int = 5
    punish_starts: int = 50
    paths: int = 4000
    angle_step: float = 0.5


ETAS = (0.02, 0.05, 0.1, 0.2)
BOUND_ETAS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
BOUND_COSTS = (1.5, 2.0, 3.0)
EXP3_ETAS = (0.02, 0.05, 0.1, 0.2, 0.4)
EXPONENTS = (2.0, 4.0, 8.0)
ALWAYS = "the spec's 'always', as a rate whose exact lower bound must exclude 0.95"

CLAIMS = [
    ClaimSpec(
        "content-incentives/1a",
        "Best responses from random starts under Hedge (P 4, T 60, beta 0.9, c 2, eta 0.02 to 0.2) end where "
        "first-round quality is the closed form's within 2 % (largest deviation over starts and producers).",
        Threshold("<=", 0.02),
        control="the random profiles that the dynamics start from",
    ),
    ClaimSpec(
        "content-incentives/1b",
        "Those profiles are equilibria: no deviation that dynamic programming finds gains more than 2e-3.",
        Threshold("<=", 2e-3),
        control="the closed-form profile at eta 0.5, which is no equilibrium",
    ),
    ClaimSpec(
        "content-incentives/1c",
        "Quality grows like eta^(1/(c-1)): the fitted exponent is within 0.03 of 1/(c-1) for c = 2, 3, 4 "
        "(the furthest).",
        Threshold("<=", 0.03),
        control="the nearest of those exponents to 1/(c'-1) for another c'",
        paper="q ~ eta^(1/(c-1))",
    ),
    ClaimSpec(
        "content-incentives/2",
        "Every outcome of best responses obeys the upper bound in every round: c 1.5, 2, 3, eta 0.02 to 2, "
        "constant and 1/sqrt(t), cycles included.",
        Threshold(">=", 1.0, why=ALWAYS),
        null=0.95,
        control="the same outcomes against the bound of a quarter of the learning rate",
        paper="q_t <= (eta_(t+1) beta (1 - beta^(T-t)) / (1 - beta))^(1/(c-1)) up to constants",
    ),
    ClaimSpec(
        "content-incentives/3a",
        "With eta_t = t^-1/2 (T 2000, beta 0.9, c 2) quality falls like a power of t: exponent in "
        "[-0.51, -0.47] for t of 200 to 1500.",
        Threshold("between", -0.51, -0.47),
        control="a constant learning rate, the same rounds",
        paper="-> 0; -1/(2(c-1)) = -0.5",
    ),
    ClaimSpec(
        "content-incentives/3b",
        "With c 3 that exponent lies in [-0.26, -0.23].",
        Threshold("between", -0.26, -0.23),
        control="a constant learning rate, the same rounds",
        paper="-0.25",
    ),
    ClaimSpec(
        "content-incentives/3c",
        "Users' utility falls likewise (c 2): exponent in [-0.51, -0.47].",
        Threshold("between", -0.51, -0.47, why="the spec's 'likewise': the window of 3a"),
        control="users' utility under the punishing rule, the same rounds",
    ),
    ClaimSpec(
        "content-incentives/3d",
        "By its own metric the platform looks fine: regret against the best fixed producer on fixed content "
        "stays at most 2 sqrt(T ln P) (largest ratio over 20 random contents and the equilibrium's own).",
        Threshold("<=", 1.0, why="the spec's bound, as a ratio"),
        control="a platform that recommends at random, on the same contents",
    ),
    ClaimSpec(
        "content-incentives/4a",
        "Under PunishHedge every random start ends with all producers at the threshold in all rounds but the "
        "last, certified within 1e-3.",
        Threshold(">=", 1.0, why=ALWAYS),
        null=0.9,
        control="the same starts under Hedge",
        paper="unique equilibrium, (beta/P)^(1/c) (1 - eps)",
    ),
    ClaimSpec(
        "content-incentives/4b",
        "With the threshold 2 % above (beta/P)^(1/c) complying is no equilibrium: a deviation gains.",
        Threshold(">", 1e-3, why="the tolerance of a certificate"),
        control="the gain found at a threshold 1 % below",
    ),
    ClaimSpec(
        "content-incentives/4c",
        "Mean quality under PunishHedge is more than 3 times that under Hedge at the no-regret rate "
        "sqrt(ln P / T) (c 2).",
        Threshold(">", 3.0),
        control="uniform recommendation in place of the punishing rule",
    ),
    ClaimSpec(
        "content-incentives/5a",
        "EXP3 (P 3, T 40): mean quality stays below P times Hedge's bound (largest ratio over learning "
        "rates).",
        Threshold("<", 1.0),
        control="the same ratio against the bound of a twentieth of the learning rate",
    ),
    ClaimSpec(
        "content-incentives/5b",
        "Quality under EXP3 vanishes with the learning rate: the exponent of quality in eta is above 0.",
        Threshold(">", 0.0),
        null=0.0,
        control="the exponent under PunishHedge",
    ),
    ClaimSpec(
        "content-incentives/6a",
        "Two users at an angle: the criteria switch from one content for both to one each at "
        "2 arccos(2^(-1/c)), within 2 degrees (the furthest of c 2, 4, 8).",
        Threshold("<=", 2.0),
        control="the nearest of the three switches to the formula of another c",
        paper="an angular threshold",
    ),
    ClaimSpec(
        "content-incentives/6b",
        "At every angle users fare at least as well under PunishUserUtility as under PunishDirection, both "
        "at their certified equilibria.",
        Threshold(">=", 1.0, why=ALWAYS),
        null=0.95,
        control="the share of angles at which PunishDirection is at least as good",
    ),
    ClaimSpec(
        "content-incentives/6cr",
        "Users' utility per round under PunishUserUtility for a steep cost (c 256, users 60 degrees apart).",
        Threshold("report"),
        paper="1 - eps as c grows",
    ),
]


@study(
    "content-incentives",
    wing="society",
    paper="Hu, Jagadeesan, Jordan, Steinhardt 2023, Incentivizing High-Quality Content in Online Recommender "
    "Systems, arXiv 2306.07479",
    claims=CLAIMS,
    configs={"laptop": Config(), "paper": Config(seeds=20, punish_starts=500, paths=100_000, angle_step=0.1)},
)
def content_incentives(config: Config, lab: Lab) -> Iterator[Yield]:
    """Content incentives: what a learning recommender's rate does to quality, and what punishing repairs."""
    yield from _certified(lab)
    yield from _bounded(lab)
    yield from _falling(lab)
    yield from _punished(lab, config)
    yield from _bandit(lab, config)
    yield from _angles(lab, config)


def _market(**changes: Any) -> ContentMarket:
    from glasshouse.society.content_incentives import ContentMarket

    return ContentMarket(**changes)


def _solve(market: ContentMarket, **options: Any) -> ContentEquilibrium:
    """Without a warning: whether an equilibrium was found is part of what is measured."""
    from glasshouse.society.content_incentives import solve

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return solve(market, **options)


def _largest(values: Sequence[float], n: int, method: str) -> Estimate:
    """A maximum of deterministic results."""
    return Estimate.exact(max(values), n, method=method)


# ── claim 1: equilibria under Hedge, certified ──


def _certified(lab: Lab) -> Iterator[Yield]:
    rows = [
        lab.step(f"hedge {c} {eta} {seed}", lambda c=c, eta=eta, seed=seed: _hedge(c, eta, seed))
        for c in (2.0, 3.0, 4.0) for eta in ETAS for seed in (lab.seeds if c == 2 else lab.seeds[:1])
    ]  # fmt: skip
    main = [row for row in rows if row["c"] == 2]
    n = len(main)
    off = "largest of the solved profiles"
    yield lab.claim(
        "content-incentives/1a", _largest([row["off"] for row in main], n, off),
        _largest([row["start_off"] for row in main], n, "largest of the starts"),
    )  # fmt: skip
    failing = lab.step("closed form at eta 0.5", _closed_form_gain)
    yield lab.claim(
        "content-incentives/1b", _largest([row["eps"] for row in main], n, "largest searched gain"),
        Estimate.exact(failing, 1, method="searched gain"), note=f"search: {main[0]['method']}",
    )  # fmt: skip
    slopes = {
        c: log_slope([r["eta"] for r in part], [r["q"] for r in part])
        for c in (2.0, 3.0, 4.0)
        for part in [[row for row in rows if row["c"] == c]]
    }
    gaps = {c: abs(s.value - 1 / (c - 1)) for c, s in slopes.items()}
    c, error = max(gaps, key=lambda c: gaps[c]), max((s.high - s.low) / 2 for s in slopes.values())
    others = [abs(s.value - 1 / (d - 1)) for c, s in slopes.items() for d in slopes if d != c]
    yield lab.claim(
        "content-incentives/1c", Estimate.exact(gaps[c], len(rows), error, "distance, regression error"),
        Estimate.exact(min(others), len(rows), error, "distance, regression error"),
        note="; ".join(f"c = {c:g}: {s}" for c, s in slopes.items()),
    )  # fmt: skip
    yield Table("hedge", rows)


def _hedge(c: float, eta: float, seed: int) -> dict[str, Any]:
    from glasshouse.runtime.seeds import rng
    from glasshouse.society.content_incentives import steady_quality

    market = _market(c=c, eta=eta)
    expected = steady_quality(market.P, market.beta, c, eta)
    start = rng(seed, "content start").random((market.P, market.T, 1))
    found = _solve(market, start=start)
    first = found.quality[:, 0]
    return {
        "c": c, "eta": eta, "seed": seed, "q": float(first.mean()), "closed_form": expected,
        "off": float(abs(first / expected - 1).max()),
        "start_off": float(abs(start[:, 0] / expected - 1).max()),
        "eps": found.eps_nash, "regime": found.regime, "rounds": found.rounds,
        "method": found.certificate_method,
    }  # fmt: skip


def _closed_form_gain() -> float:
    from glasshouse.society.content_incentives import certify, symmetric_foc

    market = _market(eta=0.5)
    profile = _repeated(symmetric_foc(market), market.P)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return certify(market, profile).eps_nash


def _repeated(q: Any, P: int) -> Any:
    import numpy as np

    return np.tile(np.asarray(q)[None, :, None], (P, 1, 1))


# ── claim 2: the upper bound ──


def _bounded(lab: Lab) -> Iterator[Yield]:
    cases = [
        (c, eta, decay, start)
        for c in BOUND_COSTS for eta in BOUND_ETAS for decay in (0.0, 0.5) for start in ("zero", "random")
    ]  # fmt: skip
    rows = [lab.step(f"bound {case}", lambda case=case: _obeys(*case)) for case in cases]
    n = len(rows)
    kinds = {
        kind: sum(row["regime"] == kind for row in rows) for kind in ("equilibrium", "cycle", "undecided")
    }
    yield lab.claim(
        "content-incentives/2", one_sided_bound(sum(row["obeys"] for row in rows), n),
        one_sided_bound(sum(row["obeys_quarter"] for row in rows), n),
        note="; ".join(f"{kind}: {count}" for kind, count in kinds.items())
        + f"; the tightest outcome is at {max(row['nearest'] for row in rows):.3f} of the bound",
    )  # fmt: skip
    yield Table("bound", rows)


def _obeys(c: float, eta: float, decay: float, start: str) -> dict[str, Any]:
    """Every profile visited in a cycle must obey, and so does their average."""
    from glasshouse.society.content_incentives import upper_bound

    market = _market(P=3, T=30, c=c, eta=eta, decay=decay)
    found = _solve(market, start=start, rounds=10, seed=1)
    bound = upper_bound(market)
    quarter = upper_bound(market.changed({"eta": eta / 4}))
    visited = found.visited[..., 0]  # (k, P, T)
    return {
        "c": c, "eta": eta, "decay": decay, "start": start, "regime": found.regime, "eps": found.eps_nash,
        "obeys": bool((visited <= bound + 1e-9).all()),
        "obeys_quarter": bool((visited <= quarter + 1e-9).all()),
        "nearest": float((visited[..., :-1] / bound[:-1]).max()),
    }  # fmt: skip


# ── claim 3: falling learning rates ──


def _falling(lab: Lab) -> Iterator[Yield]:
    found = {
        (c, decay): lab.step(f"horizon {c} {decay}", lambda c=c, decay=decay: _long(c, decay))
        for c in (2.0, 3.0) for decay in (0.5, 0.0)
    }  # fmt: skip
    window = (200, 1500)
    for claim, c in (("content-incentives/3a", 2.0), ("content-incentives/3b", 3.0)):
        falling, steady = found[c, 0.5], found[c, 0.0]
        slope, control = (log_slope(run["t"], run["quality"], window=window) for run in (falling, steady))
        yield lab.claim(claim, slope, control, note=_long_note(falling))
    punished = lab.step("horizon punished", lambda: _long(2.0, 0.5, algo="punish-hedge"))
    welfare = [log_slope(run["t"], run["welfare"], window=window) for run in (found[2.0, 0.5], punished)]
    yield lab.claim("content-incentives/3c", *welfare)
    ratios = lab.step("regret", lambda: _regrets(found[2.0, 0.5]["profile"]))
    yield lab.claim(
        "content-incentives/3d", _largest(ratios["hedge"], len(ratios["hedge"]), "largest of the contents"),
        _largest(ratios["uniform"], len(ratios["uniform"]), "largest of the contents"),
        note=f"with the rate sqrt(ln P / t) the largest ratio is {max(ratios['tuned']):.3f}",
    )  # fmt: skip
    yield Figure("falling", _falling_figure(found, punished))


def _long(c: float, decay: float, algo: str = "hedge") -> dict[str, Any]:
    """The profile at T = 2000, its certificate, and a best response from nothing in the same rounds."""
    import numpy as np

    from glasshouse.society.content_incentives import best_response, symmetric_foc

    eta = 1.0 if decay else 0.1
    market = _market(T=2000, c=c, eta=eta, decay=decay, algo=algo)
    start = _repeated(symmetric_foc(market), 4) if algo == "hedge" else "zero"
    found = _solve(market, start=start, rounds=5)
    alone = found.p.copy()
    alone[0] = 0.0
    again = np.linalg.norm(best_response(market, alone, 0).p, axis=-1)
    kept = slice(0, 1990)
    reference = found.quality[0, 199:1500]
    return {
        "t": list(range(1, 1991)), "quality": found.quality.mean(0)[kept].tolist(),
        "welfare": found.welfare[kept].tolist(), "eps": found.eps_nash, "regime": found.regime,
        "from_nothing": float(abs(again[199:1500] / reference - 1).max()),
        "profile": found.quality.tolist() if algo == "hedge" and decay and c == 2 else [],
    }  # fmt: skip


def _long_note(run: dict[str, Any]) -> str:
    return (
        f"{run['regime']}, no searched deviation gains more than {run['eps']:.1e}; a best response searched "
        f"from nothing differs by at most {run['from_nothing']:.1e} in these rounds"
    )


def _regrets(profile: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    """Regret over 2 sqrt(T ln P) on 20 fixed contents and on the equilibrium's own, by rule."""
    import numpy as np

    from glasshouse.society.content_incentives import exposures, regret
    from glasshouse.society.content_incentives.sweeps import fixed_content

    hedge = _market(T=2000, eta=1.0, decay=0.5)
    rules = {
        "hedge": hedge, "tuned": hedge.changed({"eta": math.sqrt(math.log(4))}),
        "uniform": hedge.changed({"algo": "uniform"}),
    }  # fmt: skip
    contents = [fixed_content(hedge, seed) for seed in range(20)] + [np.array(profile)[:, :, None]]
    allowed = 2 * math.sqrt(hedge.T * math.log(hedge.P))
    return {
        name: [regret(rule, p, exposures(rule, p)) / allowed for p in contents]
        for name, rule in rules.items()
    }


# ── claim 4: punishing ──


def _punished(lab: Lab, config: Config) -> Iterator[Yield]:
    rows = [lab.step(f"punish {seed}", lambda s=seed: _punish(s)) for seed in range(config.punish_starts)]
    n = len(rows)
    yield lab.claim(
        "content-incentives/4a", one_sided_bound(sum(row["at_threshold"] for row in rows), n),
        one_sided_bound(sum(row["hedge_at_threshold"] for row in rows), n),
        note=f"q* = {rows[0]['threshold']:.4f}; largest searched gain {max(row['eps'] for row in rows):.1e}",
    )  # fmt: skip
    gains = lab.step("thresholds", _threshold_gains)
    yield lab.claim(
        "content-incentives/4b", Estimate.exact(gains["above"], 1, method="searched gain"),
        Estimate.exact(gains["below"], 1, method="searched gain"),
    )  # fmt: skip
    table = lab.step("rules", _rules)
    by = {(row["algo"], row["c"]): row for row in table}
    punish, hedge, uniform = (by[algo, 2.0]["quality"] for algo in ("punish-hedge", "hedge", "uniform"))
    yield lab.claim(
        "content-incentives/4c", Estimate.exact(punish / hedge, 2, method="deterministic, certified"),
        Estimate.exact(uniform / hedge, 2, method="deterministic, certified"),
        note="; ".join(
            f"c = {c:g}: {by['punish-hedge', c]['quality']:.3f} against {by['hedge', c]['quality']:.3f}"
            for c in (2.0, 3.0)
        ),
    )  # fmt: skip
    yield Table("punish", rows)
    yield Table("rules", table)


def _punish(seed: int) -> dict[str, Any]:
    from glasshouse.society.content_incentives import punish_threshold

    market = _market(algo="punish-hedge", eta=0.15)
    target = punish_threshold(market.P, market.beta, market.c, market.eps)
    found = _solve(market, start="random", seed=seed)
    hedge = _solve(market.changed({"algo": "hedge"}), start="random", seed=seed, rounds=3)

    def there(e: ContentEquilibrium) -> bool:
        q = e.quality
        return bool((abs(q[:, :-1] - target) < 1e-9).all() and (q[:, -1] == 0).all() and e.eps_nash <= 1e-3)

    return {
        "seed": seed, "threshold": target, "at_threshold": there(found), "hedge_at_threshold": there(hedge),
        "eps": found.eps_nash, "rounds": found.rounds,
    }  # fmt: skip


def _threshold_gains() -> dict[str, float]:
    """Largest gain of a deviation where all comply, with the threshold above and below break-even."""
    import numpy as np

    from glasshouse.society.content_incentives import certify, punish_threshold

    out = {}
    for name, factor in (("above", 1.02), ("below", 0.99)):
        q = factor * punish_threshold(4, 0.9, 2.0, 0.0)
        market = _market(algo="punish-hedge", eta=0.15, q=q)
        content = np.full(market.T, q)
        content[-1] = 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            out[name] = certify(market, _repeated(content, market.P)).eps_nash
    return out


def _rules() -> list[dict[str, Any]]:
    from glasshouse.society.content_incentives import compare_algorithms

    algos = ("hedge", "punish-hedge", "uniform", "static-contest", "exp3")
    rows = []
    for c in (2.0, 3.0):
        curve = compare_algorithms(_market(c=c, eta=math.sqrt(math.log(4) / 60)), algos)
        for at, algo in enumerate(curve.words["algo"]):
            told = {name: float(column[at]) for name, column in curve.numbers.items()}
            rows.append({"algo": algo, "c": c, **{k: None if v != v else v for k, v in told.items()}})
    return rows


# ── claim 5: EXP3 ──


def _bandit(lab: Lab, config: Config) -> Iterator[Yield]:
    rows = [
        lab.step(f"exp3 {eta} {seed}", lambda e=eta, s=seed: _exp3(e, s, config.paths))
        for eta in EXP3_ETAS for seed in lab.seeds
    ]  # fmt: skip
    ratios = {eta: t_interval([row["ratio"] for row in rows if row["eta"] == eta]) for eta in EXP3_ETAS}
    worst = max(ratios, key=lambda eta: ratios[eta].value)
    controls = [t_interval([row["ratio_small"] for row in rows if row["eta"] == eta]) for eta in EXP3_ETAS]
    least = min(controls, key=lambda e: e.value)
    gains = "; ".join(
        f"eta {eta:g}: {max(row['eps'] for row in rows if row['eta'] == eta):.1e}" for eta in EXP3_ETAS
    )
    yield lab.claim(
        "content-incentives/5a", ratios[worst], least,
        note=f"largest searched gains: {gains} (simulation error up to "
        f"{max(r['eps_error'] for r in rows):.1e})",
    )  # fmt: skip
    slopes = [
        log_slope(EXP3_ETAS, [row["quality"] for row in rows if row["seed"] == seed]).value
        for seed in lab.seeds
    ]
    flat = lab.step("punished slope", _punished_slope)
    yield lab.claim(
        "content-incentives/5b", t_interval(slopes),
        Estimate.exact(flat, len(EXP3_ETAS), method="log-log least squares"), note="theory under Hedge: 1",
    )  # fmt: skip
    yield Table("exp3", rows)


def _exp3(eta: float, seed: int, paths: int) -> dict[str, float]:
    from glasshouse.society.content_incentives import upper_bound
    from glasshouse.society.content_incentives.exp3 import solve_exp3

    market = _market(P=3, T=40, algo="exp3", eta=eta, gamma=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = solve_exp3(market, seed=seed, paths=paths)
    quality = found.value
    small = market.changed({"eta": eta / 20})
    return {
        "eta": eta, "seed": seed, "quality": quality, "ratio": quality / float(upper_bound(market).mean()),
        "ratio_small": quality / float(upper_bound(small).mean()), "eps": found.eps_nash,
        "eps_error": found.eps_error, "first_round": float(found.quality[0, 0]),
    }  # fmt: skip


def _punished_slope() -> float:
    values = [_solve(_market(P=3, T=40, algo="punish-hedge", eta=eta)).value for eta in EXP3_ETAS]
    return log_slope(EXP3_ETAS, values).value


# ── claim 6: two users ──


def _angles(lab: Lab, config: Config) -> Iterator[Yield]:
    from glasshouse.society.content_incentives import switch_angle

    rows = [
        row for c in EXPONENTS
        for row in lab.step(f"angles {c}", lambda c=c: _two_users(c, config.angle_step))
    ]  # fmt: skip
    switches = {}
    for c in EXPONENTS:
        apart = [row["angle"] for row in rows if row["c"] == c and row["specialised"]]
        switches[c] = min(apart, default=90.0)  # nonnegative users are at most 90 degrees apart
    off = {c: abs(switches[c] - switch_angle(c)) for c in EXPONENTS}
    others = [abs(switches[c] - switch_angle(d)) for c in EXPONENTS for d in EXPONENTS if d != c]
    step = config.angle_step
    yield lab.claim(
        "content-incentives/6a", Estimate.exact(max(off.values()), 3, step, "grid of angles"),
        Estimate.exact(min(others), 3, step, "grid of angles"),
        note="; ".join(f"c = {c:g}: {switches[c]:.1f} against {switch_angle(c):.2f}" for c in EXPONENTS)
        + " (c = 2: the switch lies at the largest angle that nonnegative users can have, where both tie)",
    )  # fmt: skip
    n = len(rows)
    better = sum(row["user_utility"] >= row["direction"] - 1e-12 for row in rows)
    worse = sum(row["direction"] >= row["user_utility"] for row in rows)
    yield lab.claim(
        "content-incentives/6b", one_sided_bound(better, n), one_sided_bound(worse, n),
        note=f"largest searched gain in any of the {2 * n} equilibria: {max(row['eps'] for row in rows):.1e}",
    )  # fmt: skip
    steep = lab.step("steep", lambda: _steep((2.0, 8.0, 32.0, 256.0)))
    yield lab.claim(
        "content-incentives/6cr", Estimate.exact(steep[-1]["welfare"], 1, method="deterministic, certified"),
        note="; ".join(f"c = {row['c']:g}: {row['welfare']:.4f}" for row in steep),
    )  # fmt: skip
    yield Table("angles", rows)
    yield Figure("angles", _angle_figure(rows))


def _users(angle: float) -> tuple[tuple[float, float], ...]:
    """Two users `angle` degrees apart, on either side of the diagonal."""
    centre, half = math.pi / 4, math.radians(angle) / 2
    return tuple((max(math.cos(a), 0.0), max(math.sin(a), 0.0)) for a in (centre - half, centre + half))


def _two_users(c: float, step: float) -> list[dict[str, Any]]:
    import numpy as np

    from glasshouse.society.content_incentives import optimal_criteria

    rows = []
    for angle in np.arange(step, 90 + step / 2, step).tolist():
        market = _market(P=2, T=10, c=c, users=_users(angle), algo="punish-user-utility")
        criteria = optimal_criteria(market)[0]
        found, other = _solve(market), _solve(market.changed({"algo": "punish-direction", "eta": 0.0}))
        rows.append({
            "c": c, "angle": angle, "specialised": bool((np.linalg.norm(criteria, axis=1) > 0).all()),
            "user_utility": float(found.welfare[0]), "direction": float(other.welfare[0]),
            "eps": max(found.eps_nash, other.eps_nash),
        })  # fmt: skip
    return rows


def _steep(exponents: Sequence[float]) -> list[dict[str, float]]:
    found = [
        _solve(_market(P=2, T=10, c=c, users=_users(60.0), algo="punish-user-utility")) for c in exponents
    ]
    return [{"c": c, "welfare": float(e.welfare[0])} for c, e in zip(exponents, found, strict=True)]


# ── figures ──


def _falling_figure(found: dict[tuple[float, float], Any], punished: dict[str, Any]) -> Any:
    import plotly.graph_objects as go

    runs = {f"Hedge, eta_t = t^-1/2, c = {c:g}": found[c, 0.5] for c in (2.0, 3.0)}
    runs |= {"Hedge, eta = 0.1, c = 2": found[2.0, 0.0], "PunishHedge, c = 2": punished}
    figure = go.Figure([
        go.Scatter(x=run["t"][::10], y=run["quality"][::10], name=name) for name, run in runs.items()
    ])  # fmt: skip
    return figure.update_layout(
        title="Quality at equilibrium", xaxis={"type": "log", "title": "round"},
        yaxis={"type": "log", "title": "quality"},
    )  # fmt: skip


def _angle_figure(rows: list[dict[str, Any]]) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    for c in EXPONENTS:
        part = [row for row in rows if row["c"] == c]
        for name in ("user_utility", "direction"):
            figure.add_trace(
                go.Scatter(x=[r["angle"] for r in part], y=[r[name] for r in part], name=f"{name}, c = {c:g}")
            )
    return figure.update_layout(xaxis_title="degrees between the users", yaxis_title="utility per round")
