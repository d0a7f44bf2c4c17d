"""Is a prompt processed abnormally? Detectors of odd prediction trajectories, fitted on normal prompts only.

What a lens reads at a prompt's last token, layer by layer (log-probabilities of the answer options, from
layer 1 on, in units of their spread over normal prompts), goes to a local outlier factor or an isolation
forest. Baselines look at the last layer's hidden state (Mahalanobis, and the simplified relative distance)
or at the prompt alone (perplexity). Belrose et al. 2023, section 5.2; a high score is no proof of an attack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch

from glasshouse.corpora.rows import length_buckets
from glasshouse.internals.tuned_lens import detector_files
from glasshouse.runtime.errors import AccessError, InputError, NumericalError
from glasshouse.runtime.seeds import derive
from glasshouse.statistics import Mahalanobis
from glasshouse.subjects.sites import Site

if TYPE_CHECKING:
    from glasshouse.statistics._validate import Floats
    from glasshouse.subjects import Subject

Kind = Literal["lof", "iforest", "srm", "mahalanobis", "perplexity"]
KINDS: tuple[Kind, ...] = ("lof", "iforest", "srm", "mahalanobis", "perplexity")
FEWEST = 20
"""Normal prompts a detector needs; also the neighbours of the local outlier factor."""
TREES = 100
BATCH_TOKENS = 16384

Options = Sequence[int | str] | Sequence[Sequence[int]]
"""K answer options that all prompts share, as token ids or words, or K token ids for each prompt."""


class Lens(Protocol):
    """What a detector asks of a lens: logits [..., V] of residuals h [..., d] that enter block `layer`."""

    def logits(self, h: torch.Tensor, layer: int) -> torch.Tensor:
        """U of what the lens makes of h."""
        ...


@dataclass
class TrajectoryDetector:
    """`kind` "lof", "iforest", "srm", "mahalanobis" or "perplexity"; scores rise with abnormality.

    `lens`: a fitted lens (default: the logit lens); `options`: the shared answer options of the prompts
    (default: the `top_k` tokens that the model ranks first on normal prompts). Attributes after `fit`:
    `options_` (ids [K], None where each prompt brings its own), `rows_` [N, D] (what was read of the normal
    prompts), `mean_` and `spread_` [D].

    >>> detector = TrajectoryDetector("lof").fit(subject, normal)  # doctest: +SKIP
    >>> auroc(detector.score(suspects), detector.score(held_out))  # doctest: +SKIP
    """

    kind: Kind = "lof"
    lens: Lens | None = field(default=None, kw_only=True, repr=False)
    options: Sequence[int | str] | None = field(default=None, kw_only=True)
    top_k: int = field(default=10, kw_only=True)
    seed: int = field(default=0, kw_only=True)

    def fit(
        self, subject: Subject, prompts: Sequence[Any], *, options: Sequence[Sequence[int]] | None = None
    ) -> TrajectoryDetector:
        """Learn what normal prompts look like; `options` [N, K] gives each prompt its own.

        Raises InputError for fewer than 20 prompts, unknown kinds and options, and features that are the
        same on all prompts; AccessError without activations; NumericalError for NaN.
        """
        if self.kind not in KINDS:
            raise InputError(f"kind is {self.kind!r}", fix=f"choose from {', '.join(KINDS)}")
        if len(prompts) < FEWEST:
            raise InputError(
                f"{len(prompts)} normal prompts", where="TrajectoryDetector", fix=f"give at least {FEWEST}"
            )
        self.subject_ = _need_activations(subject)
        self.options_ = None if options is not None else self._shared_options(prompts)
        self.fit_rows(self._read(prompts, options))
        return self

    def fit_rows(self, rows: Any) -> TrajectoryDetector:
        """`fit` on rows [N, D] that `trajectories`, `last_hidden` or `perplexities` read."""
        x = _finite(rows, "normal prompt")
        if len(x) < FEWEST:
            raise InputError(f"{len(x)} normal rows", fix=f"give at least {FEWEST}")
        mean, spread = x.mean(0), x.std(0)
        constant = np.flatnonzero(spread <= 1e-9 * np.maximum(1, np.abs(mean)))
        if len(constant):
            raise InputError(
                f"feature {constant[0]} of {x.shape[1]} is the same on all normal prompts",
                where="TrajectoryDetector",
                fix="give prompts that differ, or other answer options",
            )
        self.rows_, self.mean_, self.spread_ = x, mean, spread
        self.options_ = getattr(self, "options_", None)
        self._model = _FITTERS[self.kind](self._scaled(x), derive(self.seed, "trajectory detector"))
        return self

    def score(self, prompts: Sequence[Any], *, options: Sequence[Sequence[int]] | None = None) -> Floats:
        """Scores [N], float64, of prompts; higher is less normal. `options` [N, K] as in `fit`.

        Scores of the very prompts it was fitted on are too low: hold some out for a threshold.
        """
        self._need_fit()
        if not hasattr(self, "subject_"):
            raise InputError("the detector has no subject", fix="load it with subject=..., or score rows")
        if not len(prompts):
            raise InputError("there are no prompts to score", fix="give at least one")
        if (options is None) != (self.options_ is not None):
            raise InputError(
                "options must be given for each prompt both to fit and to score, or to neither",
                where="TrajectoryDetector",
            )
        return self.score_rows(self._read(prompts, options))

    def score_rows(self, rows: Any) -> Floats:
        """Scores [M] of rows [M, D] read as those of `fit_rows`."""
        self._need_fit()
        x = _finite(rows, "prompt")
        if x.shape[1] != self.rows_.shape[1]:
            raise InputError(f"rows have {x.shape[1]} features, the fit had {self.rows_.shape[1]}")
        return np.asarray(self._model(self._scaled(x)), np.float64)

    def save(self, folder: Path | str) -> Path:
        """Write the rows of the normal prompts and the options, no model of scikit-learn.

        `load` fits it again from them, with the same seed, to the same bits on one version of scikit-learn.
        The lens is not stored: give it to `load`, which recognises another one.
        """
        self._need_fit()
        about = {
            "kind": self.kind, "options": None if self.options is None else list(self.options),
            "top_k": self.top_k, "seed": self.seed, "ids": self.options_,
            "subject": self.subject_.hash if hasattr(self, "subject_") else None,
            "lens": None if self.lens is None else type(self.lens).__name__,
        }  # fmt: skip
        arrays = {"rows": self.rows_}
        if self.lens is not None and hasattr(self, "subject_"):
            arrays["lens"] = detector_files.fingerprint(self.lens, self.subject_)
        return detector_files.write(Path(folder), about, arrays)

    @classmethod
    def load(
        cls, folder: Path | str, subject: Subject | None = None, *, lens: Lens | None = None
    ) -> TrajectoryDetector:
        """Read a detector and fit it again; without `subject` it scores rows only.

        Raises InputError for damaged files and for another lens, StaleError for another subject.
        """
        about, arrays = detector_files.read(Path(folder))
        detector_files.check_same(about, arrays, subject, lens, where=str(folder))
        found = cls(
            about["kind"], lens=lens, options=about["options"], top_k=about["top_k"], seed=about["seed"]
        )
        found.options_ = about["ids"]
        if subject is not None:
            found.subject_ = _need_activations(subject)
        return found.fit_rows(arrays["rows"])

    def _read(self, prompts: Sequence[Any], options: Sequence[Sequence[int]] | None) -> Floats:
        if self.kind == "perplexity":
            return perplexities(self.subject_, prompts)[:, None]
        if self.kind in ("srm", "mahalanobis"):
            return last_hidden(self.subject_, prompts)
        chosen = options if options is not None else self.options_
        assert chosen is not None
        return trajectories(self.subject_, prompts, chosen, lens=self.lens)

    def _shared_options(self, prompts: Sequence[Any]) -> list[int]:
        if self.options is not None:
            return option_ids(self.subject_, self.options)
        if self.kind in ("lof", "iforest"):
            return frequent_answers(self.subject_, prompts, self.top_k)
        return []

    def _scaled(self, x: Floats) -> Floats:
        return (x - self.mean_) / self.spread_ if self.kind in ("lof", "iforest") else x

    def _need_fit(self) -> None:
        if not hasattr(self, "rows_"):
            raise InputError("the detector was not fitted", fix="call fit(subject, normal prompts) first")


# -- what is read ----


def trajectories(
    subject: Subject, prompts: Sequence[Any], options: Options, *, lens: Lens | None = None
) -> Floats:
    """Log-probabilities (nats) of K options at each prompt's last token, [N, L * K]: layer 1 first, the
    model's own prediction last, options within a layer.

    Without `lens` the logit lens. Raises InputError for no prompts and for options that do not fit.
    """
    ids = _prompt_ids(subject, prompts)
    chosen = _option_rows(subject, options, len(ids))
    layers = range(1, subject.n_layers)
    sites = [*(Site("resid_pre", layer) for layer in layers), Site("final_norm_in")]
    found = np.empty((len(ids), len(sites), chosen.shape[1]))
    for bucket, acts in _last_states(subject, ids, sites):
        picked = chosen[bucket]
        for at, site in enumerate(sites):
            h = acts[site]
            own = lens is None or site.kind == "final_norm_in"
            with torch.no_grad():
                logits = subject.unembed(h) if own else lens.logits(h, site.layer)  # type: ignore[union-attr]
            logprobs = logits.detach().float().cpu().log_softmax(-1)
            found[bucket, at] = logprobs.gather(1, picked).double().numpy()
    return _finite(found.reshape(len(ids), -1), "prompt")


def last_hidden(subject: Subject, prompts: Sequence[Any]) -> Floats:
    """The residual stream before the final norm at each prompt's last token, [N, d]."""
    ids, site = _prompt_ids(subject, prompts), Site("final_norm_in")
    found = np.empty((len(ids), subject.d_model))
    for bucket, acts in _last_states(subject, ids, [site]):
        found[bucket] = acts[site].float().cpu().double().numpy()
    return _finite(found, "prompt")


def perplexities(subject: Subject, prompts: Sequence[Any]) -> Floats:
    """Mean nats per token of each prompt after its first, [N]. Raises InputError for a one-token prompt."""
    ids = _prompt_ids(subject, prompts)
    short = [i for i, row in enumerate(ids) if len(row) < 2]
    if short:
        raise InputError("a prompt of one token has no perplexity", where=f"prompt {short[0]}")
    scores = subject.score([row[:1] for row in ids], [row[1:] for row in ids], per_token=True)
    return _finite(np.array([-float(s.double().mean()) for s in scores])[:, None], "prompt")[:, 0]


def option_ids(subject: Subject, options: Sequence[int | str]) -> list[int]:
    """Token ids of answer options. Raises InputError for none, doubles, and texts of several tokens."""
    found = []
    for option in options:
        if isinstance(option, str):
            ids = subject.tokenizer.encode(option, add_special_tokens=False)
            if len(ids) != 1:
                raise InputError(
                    f"the option {option!r} is {len(ids)} tokens", fix="give options of one token, or ids"
                )
            option = ids[0]
        found.append(int(option))
    if not found or len(set(found)) < len(found):
        raise InputError(f"the options are {list(options)}", fix="give one or more, each once")
    return found


def frequent_answers(subject: Subject, prompts: Sequence[Any], top_k: int) -> list[int]:
    """The `top_k` tokens with the highest mean probability after the prompts, the likeliest first."""
    if top_k < 1:
        raise InputError(f"top_k is {top_k}", fix="give 1 or more")
    mean = subject.logprobs(prompts).double().exp().mean(0)
    return [int(i) for i in mean.topk(min(top_k, mean.numel())).indices]


def _last_states(subject: Subject, ids: list[list[int]], sites: list[Site]) -> Any:
    for bucket in length_buckets([len(row) for row in ids], BATCH_TOKENS):
        run = subject.run([ids[i] for i in bucket], read=sites, positions=[-1], logits=False)
        yield bucket, {site: run.acts[site][:, 0] for site in sites}


def _prompt_ids(subject: Subject, prompts: Sequence[Any]) -> list[list[int]]:
    _need_activations(subject)
    if isinstance(prompts, str) or not len(prompts):
        raise InputError("a detector reads a list of prompts", fix="give at least one")
    return subject.encode_all(list(prompts))


def _option_rows(subject: Subject, options: Options, n: int) -> torch.Tensor:
    rows = [list(o) if not isinstance(o, int | str | np.integer) else None for o in options]
    if all(row is None for row in rows):
        shared = torch.tensor(option_ids(subject, options))  # type: ignore[arg-type]
        chosen = shared.expand(n, -1)
    else:
        if len(rows) != n or any(row is None or len(row) != len(rows[0] or []) for row in rows):
            raise InputError(
                f"{len(rows)} lists of options for {n} prompts", fix="give each prompt equally many"
            )
        chosen = torch.tensor([[int(i) for i in row or []] for row in rows])
    if not chosen.numel() or int(chosen.min()) < 0 or int(chosen.max()) >= subject.vocab_size:
        raise InputError("an answer option lies outside the vocabulary", fix="give token ids of this model")
    return chosen


def _need_activations(subject: Any) -> Subject:
    """The subject, opened where a path or a model was given."""
    if not hasattr(subject, "access"):
        from glasshouse.subjects import as_subject

        subject = as_subject(subject)
    if "activations" not in subject.access:
        raise AccessError("a trajectory needs activations", where=subject.name, fix="open a local checkpoint")
    return subject


def _finite(rows: Any, what: str) -> Floats:
    x = np.asarray(rows, np.float64)
    if x.ndim != 2 or not x.size:
        raise InputError(f"rows have shape {x.shape}", fix="give an array [N, D] with entries")
    bad = np.flatnonzero(~np.isfinite(x).all(1))
    if len(bad):
        raise NumericalError("a trajectory holds NaN or infinity", where=f"{what} {bad[0]}")
    return x


# -- detectors: rows -> what scores rows ----


def _lof(x: Floats, seed: int) -> Any:
    from sklearn.neighbors import LocalOutlierFactor

    # Of exactly 20 rows each has 19 neighbours.
    model = LocalOutlierFactor(n_neighbors=min(FEWEST, len(x) - 1), novelty=True).fit(x)
    return lambda rows: -model.score_samples(rows)


def _iforest(x: Floats, seed: int) -> Any:
    from sklearn.ensemble import IsolationForest

    # Trees draw rows by number: in one order, whatever the order the prompts came in.
    ordered = x[np.lexsort(x.T[::-1])]
    model = IsolationForest(n_estimators=TREES, random_state=seed % 2**32).fit(ordered)
    return lambda rows: -model.score_samples(rows)


def _mahalanobis(x: Floats, seed: int) -> Any:
    return Mahalanobis(shrinkage="auto").fit(x).score


def _srm(x: Floats, seed: int) -> Any:
    """M(x; mu, Sigma) - M(x; mu, diag Sigma), squared distances, Sigma shrunk (Ledoit, Wolf 2004)."""
    full = Mahalanobis(shrinkage="auto").fit(x)
    scale = np.sqrt(np.diag(full.covariance_))
    return lambda rows: full.score(rows) ** 2 - (((rows - full.mean_) / scale) ** 2).sum(1)


def _as_read(x: Floats, seed: int) -> Any:
    return lambda rows: rows[:, 0]


_FITTERS = {
    "lof": _lof, "iforest": _iforest, "srm": _srm, "mahalanobis": _mahalanobis, "perplexity": _as_read,
}  # fmt: skip
