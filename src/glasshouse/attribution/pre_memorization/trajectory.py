"""A trajectory: what a run's checkpoints say about its own training rows, in arrays.

On disk it is the `.npz` of the published learning records: keys `steps`, `train_correct`, `train_samples`,
`train_logppl`, `trained_idx`, `test_correct`, `test_samples`, each behind `<run>/` in a file of several runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

Array = np.ndarray[Any, Any]

ARRAYS = (
    "steps", "train_correct", "train_samples", "train_logppl", "trained_idx", "test_correct",
    "test_samples", "train_sampled", "train_unparsable",
)  # fmt: skip
NEEDED = ("steps", "train_correct", "train_samples", "train_logppl")


@dataclass(frozen=True, eq=False)
class Trajectory:
    """What T checkpoints of one run say about N training rows, and about M test rows where there are any.

    steps [T]: optimizer steps, rising. train_correct [T, N]: right answers among train_samples [T] samples.
    train_logppl [T, N]: mean negative log-likelihood (nats a token) of the reference solution, prompt left
    out; its exponential is the perplexity. trained_idx: the rows that the run was really trained on.
    test_correct [T, M] among test_samples [T]. train_sampled [T, N]: False where a copied row was not sampled
    and its answer taken to be right (see `TrajectoryRecorder`). train_unparsable [T, N]: samples that stated
    no answer. n_trained: how many rows the run was trained on, where only that is known.

    Raises InputError, naming run, checkpoint and row, for shapes that do not fit, steps that do not rise,
    perplexities below 1 or NaN, counts above the number of samples, and a run that was trained on another
    number of rows than there are when `trained_idx` is not given.
    """

    steps: Array
    train_correct: Array
    train_samples: Array
    train_logppl: Array
    trained_idx: Array | None = None
    test_correct: Array | None = None
    test_samples: Array | None = None
    train_sampled: Array | None = None
    train_unparsable: Array | None = None
    name: str = "run"
    row_ids: tuple[str, ...] = ()
    n_trained: int | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in ARRAYS:
            value = getattr(self, key)
            if value is not None:
                object.__setattr__(self, key, np.asarray(value))
        _check(self)
        if not self.row_ids:
            object.__setattr__(self, "row_ids", tuple(map(str, range(self.n_rows))))

    def __len__(self) -> int:
        return len(self.steps)

    def __repr__(self) -> str:
        tested = "" if self.test_correct is None else f", {self.test_correct.shape[1]} test rows"
        return f"Trajectory({self.name!r}, {len(self)} checkpoints, {self.n_rows} rows{tested})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Trajectory):
            return NotImplemented
        same = all(_equal(getattr(self, key), getattr(other, key)) for key in ARRAYS)
        return same and (self.name, self.row_ids, self.n_trained) == (
            other.name, other.row_ids, other.n_trained,
        )  # fmt: skip

    __hash__ = None  # type: ignore[assignment]

    @property
    def n_rows(self) -> int:
        """N, the rows whose trajectory is known."""
        return int(self.train_logppl.shape[1])

    @property
    def trained(self) -> Array:
        """Places of the rows that the run was trained on, int64 [n]."""
        if self.trained_idx is None:
            return np.arange(self.n_rows)
        return self.trained_idx.astype(np.int64)

    @property
    def accuracy(self) -> Array:
        """Share of right samples, float64 [T, N]."""
        return self.train_correct / self.train_samples.astype(float)[:, None]

    @property
    def test_accuracy(self) -> Array | None:
        """Mean accuracy on the test rows at each checkpoint, float64 [T]; None without test rows."""
        if self.test_correct is None or self.test_samples is None:
            return None
        share: Array = self.test_correct / self.test_samples.astype(float)[:, None]
        return np.asarray(share.mean(1))

    def save(self, path: Path | str) -> Path:
        """Write the `.npz` (no pickle), whole or not at all, and return its path."""
        return save_trajectories(path, {"": self})

    @classmethod
    def load(cls, path: Path | str, run: str | None = None) -> Trajectory:
        """The trajectory in a file; `run` says which where it holds several. Raises InputError."""
        found = load_trajectories(path)
        if run is None and len(found) == 1:
            return next(iter(found.values()))
        if run not in found:
            what = f"there is no run {run!r}" if run is not None else f"the file holds {len(found)} runs"
            names = ", ".join(sorted(found))
            raise InputError(what, where=str(path), fix=f"name one of {names}")
        return found[run]

    def to_frame(self) -> pd.DataFrame:
        """One line per checkpoint and row: step, row, trained, accuracy, samples, logppl (nats a token)."""
        import pandas as pd

        t, n = self.train_logppl.shape
        trained = np.isin(np.arange(n), self.trained)
        return pd.DataFrame(
            {
                "step": np.repeat(self.steps, n),
                "row": list(self.row_ids) * t,
                "trained": np.tile(trained, t),
                "accuracy": self.accuracy.ravel(),
                "samples": np.repeat(self.train_samples, n),
                "logppl": self.train_logppl.ravel(),
            }
        )

    def plot(self, threshold: float | None = None) -> Any:
        """Accuracy on training and test rows by step (plotly); with `threshold` the prediction as well."""
        import plotly.graph_objects as go

        lines = {"training rows": self.accuracy[:, self.trained].mean(1)}
        if self.test_accuracy is not None:
            lines["test rows"] = self.test_accuracy
        if threshold is not None:
            from glasshouse.attribution.pre_memorization.accuracy import dataset_accuracy

            lines["before memorization"] = dataset_accuracy(self, threshold)
        figure = go.Figure([go.Scatter(x=self.steps, y=y, name=name) for name, y in lines.items()])
        figure.update_layout(
            title=f"Accuracy of {self.name} by training step", xaxis_title="optimizer step",
            yaxis_title="accuracy", yaxis_range=[0, 1],
        )  # fmt: skip
        return figure

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(repr(self))}</pre>"


def save_trajectories(path: Path | str, runs: Mapping[str, Trajectory]) -> Path:
    """Write several runs into one `.npz`, each under its name; the empty name writes bare keys."""
    arrays: dict[str, Array] = {}
    for name, one in runs.items():
        head = f"{name}/" if name else ""
        arrays |= {head + key: getattr(one, key) for key in ARRAYS if getattr(one, key) is not None}
        about = {
            "name": one.name, "row_ids": list(one.row_ids), "n_trained": one.n_trained,
            "meta": dict(one.meta),
        }  # fmt: skip
        arrays[f"{head}about"] = np.array(json.dumps(about, allow_nan=False))
    with files.atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.savez_compressed(handle, **arrays)  # type: ignore[arg-type]
    return Path(path)


def load_trajectories(path: Path | str) -> dict[str, Trajectory]:
    """Every run in a `.npz`, by name (a file of bare keys: one run named like the file).

    Raises InputError for a file that is none, an array that is missing, and a run without `trained_idx` in a
    file whose other runs have one.
    """
    source = Path(path)
    try:
        with np.load(source, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
    except (OSError, ValueError, EOFError) as error:
        raise InputError("this is not a trajectory file", where=str(source), fix="give a .npz") from error
    except Exception as error:  # zipfile raises its own kinds for a damaged archive
        raise InputError(f"the file is damaged ({error})", where=str(source), fix="write it again") from error
    names = sorted({key.rpartition("/")[0] for key in arrays})
    told = {name for name in names if _key(name, "trained_idx") in arrays}
    for name in names:
        if told and name not in told:
            raise InputError(
                f"run {name!r} does not say which rows it was trained on, and other runs in the file do",
                where=str(source), fix="give its trained_idx: other rows would be averaged in",
            )  # fmt: skip
    return {name or source.stem: _read(arrays, name, source) for name in names}


def _read(arrays: Mapping[str, Array], name: str, source: Path) -> Trajectory:
    missing = [key for key in NEEDED if _key(name, key) not in arrays]
    if missing:
        where = f"{source}, run {name!r}" if name else str(source)
        raise InputError(f"it lacks {', '.join(missing)}", where=where, fix=f"store {', '.join(NEEDED)}")
    about: dict[str, Any] = {"name": name or source.stem}
    if _key(name, "about") in arrays:
        about = json.loads(str(arrays[_key(name, "about")]))
        about["row_ids"] = tuple(about["row_ids"])
    found = {key: arrays[_key(name, key)] for key in ARRAYS if _key(name, key) in arrays}
    return Trajectory(**found, **about)


def _key(run: str, array: str) -> str:
    return f"{run}/{array}" if run else array


def _equal(a: Array | None, b: Array | None) -> bool:
    return (a is None and b is None) or (a is not None and b is not None and np.array_equal(a, b))


# -- what is refused -----------------------------------------------------------------------------------------


def _check(one: Trajectory) -> None:
    t = len(one.steps)
    if one.train_logppl.ndim != 2 or 0 in one.train_logppl.shape:
        raise InputError("it holds no rows or no checkpoints", where=one.name, fix="give logppl as [T, N]")
    n = one.train_logppl.shape[1]
    wanted: dict[str, Sequence[int]] = {
        "train_logppl": (t, n), "train_correct": (t, n), "train_samples": (t,), "train_sampled": (t, n),
        "train_unparsable": (t, n), "test_samples": (t,),
    }  # fmt: skip
    for key, shape in wanted.items():
        value = getattr(one, key)
        if value is not None and value.shape != tuple(shape):
            raise InputError(
                f"{key} has shape {value.shape}, not {tuple(shape)}", where=one.name,
                fix="give an entry for every checkpoint, and for every row",
            )  # fmt: skip
    falls = np.flatnonzero(np.diff(one.steps) <= 0)
    if len(falls):
        a, b = one.steps[falls[0]], one.steps[falls[0] + 1]
        raise InputError(
            f"checkpoint {falls[0] + 1} is of step {b} and follows step {a}", where=one.name,
            fix="sort the checkpoints of one run by step, and leave other runs out",
        )  # fmt: skip
    if one.row_ids and len(one.row_ids) != n:
        raise InputError(f"{len(one.row_ids)} ids for {n} rows", where=one.name, fix="name every row once")
    _check_perplexity(one)
    _check_counts(one, "train")
    _check_counts(one, "test")
    _check_trained(one, n)


def _check_perplexity(one: Trajectory) -> None:
    bad = np.argwhere(~np.isfinite(one.train_logppl) | (one.train_logppl < 0))
    if len(bad):
        t, i = bad[0]
        value = float(one.train_logppl[t, i])
        what = f"is below 1 (log-perplexity {value:.3g})" if value < 0 else f"is {value}"
        raise InputError(
            f"the perplexity of row {i} at checkpoint {t} {what}", where=one.name,
            fix="give the mean negative log-likelihood of the solution's tokens, in nats",
        )  # fmt: skip


def _check_counts(one: Trajectory, kind: str) -> None:
    correct, samples = getattr(one, f"{kind}_correct"), getattr(one, f"{kind}_samples")
    if (correct is None) != (samples is None):
        raise InputError(f"{kind}_correct and {kind}_samples belong together", where=one.name)
    if correct is None:
        return
    if correct.ndim != 2 or len(correct) != len(one.steps):
        raise InputError(f"{kind}_correct has shape {correct.shape}", where=one.name, fix="give it as [T, N]")
    if (samples < 1).any() or (correct < 0).any() or (correct > samples[:, None]).any():
        raise InputError(
            f"{kind}_correct counts more right answers than samples, or there are no samples",
            where=one.name, fix="give counts, not shares",
        )  # fmt: skip


def _check_trained(one: Trajectory, n: int) -> None:
    if one.trained_idx is None:
        if one.n_trained is not None and one.n_trained != n:
            raise InputError(
                f"the run was trained on {one.n_trained} rows and {n} were measured", where=one.name,
                fix="give trained_idx: rows it never saw would be averaged in",
            )  # fmt: skip
        return
    idx = one.trained_idx
    if idx.ndim != 1 or not len(idx) or idx.min() < 0 or idx.max() >= n or len(np.unique(idx)) != len(idx):
        raise InputError(
            f"trained_idx does not name rows of the {n} that were measured, each once", where=one.name
        )
