"""`TrajectoryRecorder`: from checkpoints and training rows to a `Trajectory`.

A checkpoint is measured alone, so a run of checkpoints goes to any executor and, with a store, a killed
recording goes on at the checkpoint it was in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np

from glasshouse.attribution.pre_memorization import measure
from glasshouse.attribution.pre_memorization.answers import Matcher, answers_match
from glasshouse.attribution.pre_memorization.trajectory import Array, Trajectory
from glasshouse.corpora.rows import Record
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError, StaleError
from glasshouse.runtime.seeds import derive, rng
from glasshouse.training.run_folders import find_checkpoints

By = Literal["perplexity", "overlap"]


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How a checkpoint is measured; see `TrajectoryRecorder`."""

    k: int
    temperature: float
    top_p: float
    max_new_tokens: int
    stop: str | None
    matcher: Matcher
    memorised_by: By
    skip_below: float | None
    audit: float
    seed: int
    batch_tokens: int


@dataclass(frozen=True)
class _Shard:
    source: Any
    step: int
    train: tuple[Record, ...]
    test: tuple[Record, ...]
    how: Asking
    file: Path | None
    key: str


class TrajectoryRecorder:
    """Perplexity and sampled accuracy of training rows at every checkpoint of a run.

    k, temperature, top_p, max_new_tokens: how replies are sampled (the paper's values for GSM8K; 1,024 tokens
    for MATH). stop: a text that ends a solution, cut off with all behind it. matcher: `answers_match`, or any
    function of reply and reference that returns a `Match`. memorised_by: "perplexity", or "overlap" (ROUGE-L
    of samples with the reference) for subjects without log-probabilities.
    skip_below: a threshold log(log p); rows that are memorised at a checkpoint are not sampled there but for
    a share `audit` of them, and count as right: the paper's measure needs their accuracy only for its final
    minimum, which `dataset_accuracy` corrects by the audited ones. None samples every row.

    Learned by `fit`: `trajectory_`; `tokens_`, generated at each checkpoint ([T], -1 where an API does not
    say), `tokens_saved_`, the share of row samples that were left out.
    """

    def __init__(
        self,
        *,
        k: int = 5,
        temperature: float = 0.8,
        top_p: float = 0.95,
        max_new_tokens: int = 512,
        stop: str | None = None,
        matcher: Matcher = answers_match,
        memorised_by: By = "perplexity",
        skip_below: float | None = None,
        audit: float = 0.05,
        seed: int = 0,
        batch_tokens: int = 16384,
    ) -> None:
        self.k, self.temperature, self.top_p = k, temperature, top_p
        self.max_new_tokens, self.stop, self.matcher = max_new_tokens, stop, matcher
        self.memorised_by: By = memorised_by
        self.skip_below, self.audit = skip_below, audit
        self.seed, self.batch_tokens = seed, batch_tokens

    def __repr__(self) -> str:
        state = f", {self.trajectory_!r}" if hasattr(self, "trajectory_") else ""
        return f"TrajectoryRecorder(k={self.k}, memorised_by={self.memorised_by!r}{state})"

    def fit(
        self,
        checkpoints: Path | str | Sequence[Any],
        train: Sequence[Record],
        *,
        test: Sequence[Record] = (),
        steps: Sequence[int] | None = None,
        trained_idx: Sequence[int] | None = None,
        n_trained: int | None = None,
        name: str = "run",
        executor: Any = None,
        store: Path | str | None = None,
        report: Callable[[str], None] = lambda text: None,
    ) -> Self:
        """Measure `train` (and `test`, sampled only) at every checkpoint.

        checkpoints: a folder of `checkpoint-<step>` folders, or a sequence of whatever `as_subject` opens
        (folders, `inspect:PROVIDER/MODEL`, subjects) in the order of `steps`. trained_idx: places of the rows
        that the run was trained on, n_trained: their number; one of them is needed where it left rows out.

        Raises InputError for rows that are no queries with solutions, steps that do not rise, checkpoints of
        different runs or vocabularies; AccessError for "perplexity" of a subject without log-probabilities;
        StaleError for a store that holds another recording.
        """
        how = self._checked()
        measure.check_rows(train)
        if len(test):
            measure.check_rows(test)
        if n_trained is not None and trained_idx is None and n_trained != len(train):
            raise InputError(
                f"the run was trained on {n_trained} rows and {len(train)} are given", where=name,
                fix="give trained_idx: rows it never saw would be averaged in",
            )  # fmt: skip
        sources, at = _sources(checkpoints, steps)
        key = _key(train, test, how)
        shards = [
            _Shard(source, step, tuple(train), tuple(test), how, _file(store, step), key)
            for source, step in zip(sources, at, strict=True)
        ]
        found = []
        for shard, one in zip(shards, _mapper(executor).map(_measure, shards), strict=True):
            report(f"step {shard.step}: {one['right'].sum() / (self.k * len(train)):.1%} of samples right")
            found.append(one)
        self._keep(found, at, train, len(test), trained_idx, n_trained, name)
        return self

    def cost(
        self, checkpoints: Path | str | Sequence[Any], train: Sequence[Record], *, test: Sequence[Record] = ()
    ) -> dict[str, float]:
        """Upper bounds: checkpoints, passes over a solution, completions, and generated tokens."""
        n = len(_sources(checkpoints, None if not _is_sequence(checkpoints) else range(len(checkpoints)))[0])
        completions = n * self.k * (len(train) + len(test))
        scored = n * len(train) if self.memorised_by == "perplexity" else 0
        return {
            "checkpoints": n, "solutions_scored": scored, "completions": completions,
            "tokens_at_most": completions * self.max_new_tokens,
        }  # fmt: skip

    def _checked(self) -> Asking:
        if self.k < 1 or self.max_new_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise InputError(
                f"k={self.k}, temperature={self.temperature}, top_p={self.top_p}, "
                f"max_new_tokens={self.max_new_tokens}",
                fix="give k and max_new_tokens of 1 or more, temperature >= 0, top_p in (0, 1]",
            )
        if self.memorised_by not in ("perplexity", "overlap"):
            raise InputError(f"memorised_by is {self.memorised_by!r}", fix="give 'perplexity' or 'overlap'")
        if not 0 <= self.audit <= 1:
            raise InputError(f"audit is {self.audit}", fix="give a share in [0, 1]")
        if self.skip_below is not None and not math.isfinite(self.skip_below):
            raise InputError(f"skip_below is {self.skip_below}", fix="give log(log p), or None")
        if self.skip_below is not None and self.memorised_by == "overlap":
            raise InputError("overlap is known only after sampling, so nothing can be skipped",
                             where="skip_below", fix="leave it at None")  # fmt: skip
        names = Asking.__dataclass_fields__
        return Asking(**{name: getattr(self, name) for name in names})

    def _keep(
        self, found: Sequence[Mapping[str, Array]], steps: Sequence[int], train: Sequence[Record],
        n_test: int, trained_idx: Sequence[int] | None, n_trained: int | None, name: str,
    ) -> None:  # fmt: skip
        stack = {key: np.stack([one[key] for one in found]) for key in found[0] if key != "key"}
        k = np.full(len(found), self.k)
        tested = {"test_correct": stack["test_right"], "test_samples": k} if n_test else {}
        self.trajectory_ = Trajectory(
            steps=np.asarray(steps, np.int64), train_correct=stack["right"], train_samples=k,
            train_logppl=stack["logppl"], train_unparsable=stack["unparsable"],
            train_sampled=None if stack["sampled"].all() else stack["sampled"],
            trained_idx=None if trained_idx is None else np.asarray(list(trained_idx), np.int64),
            name=name, row_ids=tuple(row.id for row in train), n_trained=n_trained,
            meta={"memorised_by": self.memorised_by, "k": self.k, "temperature": self.temperature,
                  "top_p": self.top_p, "audit": self.audit, "skip_below": self.skip_below},
            **tested,
        )  # fmt: skip
        self.tokens_ = stack["tokens"]
        self.tokens_saved_ = float(1 - stack["sampled"].mean())

    def save(self, path: Path | str) -> Path:
        """Write the recorded trajectory as `.npz`. Raises InputError before `fit`."""
        if not hasattr(self, "trajectory_"):
            raise InputError("nothing was recorded yet", fix="call fit first")
        return self.trajectory_.save(path)


def measure_subject(
    subject: Any, train: Sequence[Record], test: Sequence[Record], how: Asking, step: int
) -> dict[str, Array]:
    """One checkpoint: logppl, right, unparsable, sampled [N], tokens [], test_right [M]."""
    n = len(train)
    draw = {
        "k": how.k, "temperature": how.temperature, "top_p": how.top_p, "stop": how.stop,
        "max_new_tokens": how.max_new_tokens, "batch_tokens": how.batch_tokens,
    }  # fmt: skip
    sampled = np.ones(n, bool)
    logppl = np.empty(0, np.float32)
    if how.memorised_by == "perplexity":
        logppl = measure.solution_logppl(subject, train, batch_tokens=how.batch_tokens)
        if how.skip_below is not None:
            copied = logppl < math.exp(how.skip_below)
            audited = rng(how.seed, "audit", step).random(n) < how.audit
            sampled = ~copied | audited
    right, unparsable, tokens = np.full(n, how.k), np.zeros(n, np.int64), 0
    if sampled.any():
        rows = [row for row, wanted in zip(train, sampled, strict=True) if wanted]
        said = measure.sample(subject, rows, seed=derive(how.seed, "train", step), **draw)
        right[sampled], unparsable[sampled] = measure.judge(said, rows, how.matcher)
        tokens = said.tokens
        if how.memorised_by == "overlap":
            logppl = measure.overlap_logppl(said, rows)
    tested = np.zeros(0, np.int64)
    if len(test):
        said = measure.sample(subject, test, seed=derive(how.seed, "test", step), **draw)
        tested, _ = measure.judge(said, test, how.matcher)
    return {
        "logppl": logppl, "right": right, "unparsable": unparsable, "sampled": sampled,
        "tokens": np.array(tokens), "test_right": tested,
    }  # fmt: skip


def _measure(shard: _Shard) -> dict[str, Array]:
    """One shard, read back where its file is complete."""
    from glasshouse.subjects import as_subject

    subject = as_subject(shard.source, self_test=False)
    key = files.sha256_json([shard.key, subject.hash, shard.step])
    stored = _stored(shard.file, key)
    if stored is not None:
        return stored
    found = measure_subject(subject, shard.train, shard.test, shard.how, shard.step)
    if shard.file is not None:
        with files.atomic_path(shard.file) as temporary, open(temporary, "wb") as handle:
            np.savez(handle, key=np.array(key), **found)  # type: ignore[arg-type]
    return found


def _stored(file: Path | None, key: str) -> dict[str, Array] | None:
    if file is None or not file.exists():
        return None
    with np.load(file, allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    if str(found.pop("key")) != key:
        raise StaleError(
            "it was measured on another checkpoint, other rows or with other settings", where=str(file),
            fix="choose an empty store",
        )  # fmt: skip
    return found


def _sources(checkpoints: Any, steps: Sequence[int] | None) -> tuple[list[Any], list[int]]:
    if not _is_sequence(checkpoints):
        found = find_checkpoints(checkpoints)
        if steps is not None and list(steps) != [step for step, _ in found]:
            raise InputError("the steps are those of the folders' names", fix="leave steps out")
        return [path for _, path in found], [step for step, _ in found]
    sources = list(checkpoints)
    if not sources:
        raise InputError("there are no checkpoints", fix="give at least one")
    if steps is None or len(steps) != len(sources):
        raise InputError(
            f"{len(sources)} checkpoints need {len(sources)} steps", fix="give steps=[...], rising"
        )  # fmt: skip
    at = [int(step) for step in steps]
    if any(b <= a for a, b in pairwise(at)):
        raise InputError(f"the steps {at} do not rise", fix="sort the checkpoints of one run by step")
    _one_vocabulary(sources)
    return sources, at


def _one_vocabulary(sources: Sequence[Any]) -> None:
    """Checkpoints of one run share a vocabulary: asked of subjects in memory and of folders' configs."""
    sizes = []
    for source in sources:
        config = Path(source) / "config.json" if isinstance(source, str | Path) else None
        if config is None:
            sizes.append(getattr(source, "vocab_size", None))
        elif config.is_file():
            sizes.append(cast("dict[str, Any]", files.read_json(config)).get("vocab_size"))
    known = sorted({size for size in sizes if size is not None})
    if len(known) > 1:
        raise InputError(
            f"the checkpoints have vocabularies of {' and '.join(map(str, known))} tokens",
            fix="give the checkpoints of one run",
        )


def _is_sequence(checkpoints: Any) -> bool:
    return isinstance(checkpoints, Sequence) and not isinstance(checkpoints, str)


def _mapper(executor: Any) -> Any:
    from glasshouse.attribution.base import as_mapper

    return as_mapper(executor)


def _file(store: Path | str | None, step: int) -> Path | None:
    return None if store is None else Path(store) / f"checkpoint-{step}.npz"


def _key(train: Sequence[Record], test: Sequence[Record], how: Asking) -> str:
    def said(rows: Sequence[Record]) -> list[Any]:
        return [[row.id, [[turn.role, turn.text] for turn in row.turns]] for row in rows]

    settings = {k: v for k, v in asdict(how).items() if k not in ("matcher", "batch_tokens")}
    matcher = f"{how.matcher.__module__}.{getattr(how.matcher, '__qualname__', how.matcher)}"
    return files.sha256_json([said(train), said(test), settings, matcher])
