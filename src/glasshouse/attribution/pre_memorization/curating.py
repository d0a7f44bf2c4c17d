"""`curate`: from the checkpoints of a run, or a recorded trajectory, to what to collect more of; resumable.

prepare (everything that can be refused) -> cost -> curate (journalled) -> `curate_page.write_curation`
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from glasshouse.attribution.pre_memorization.accuracy import Notes, fragile_examples, notes
from glasshouse.attribution.pre_memorization.answers import final_answer, whole_reply
from glasshouse.attribution.pre_memorization.curation import CUTOFF, CurationPlan
from glasshouse.attribution.pre_memorization.measure import OVERLAP_THRESHOLD, check_rows, reference
from glasshouse.attribution.pre_memorization.prediction import predicted_accuracy
from glasshouse.attribution.pre_memorization.recorder import By, TrajectoryRecorder
from glasshouse.attribution.pre_memorization.trajectory import Trajectory
from glasshouse.runtime import files
from glasshouse.runtime.codeversion import code_version
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.runs import Run
from glasshouse.training.run_folders import find_checkpoints

if TYPE_CHECKING:
    import pandas as pd

    from glasshouse.corpora.records import Records
    from glasshouse.statistics import Estimate

DEFAULT_THRESHOLD = -2.3
STATED = 0.9
"""Share of solutions that must state an answer for `answers_match` to be the matcher."""


@dataclass(frozen=True, kw_only=True)
class CurateOptions:
    """Everything that decides the plan besides checkpoints and rows.

    threshold: log(log p); None: -2.3 (ROUGE-L 0.95 with `by="overlap"`); "flat": the label-free choice.
    group: a field of the rows by which quotas are summed up. match: "final" answers, "whole" replies, or
    "auto": final where nine of ten solutions state one. skip: whether copied rows are only audited.
    """

    budget: int
    cutoff: float = CUTOFF
    threshold: float | Literal["flat"] | None = None
    k: int = 5
    temperature: float = 0.8
    top_p: float = 0.95
    max_new_tokens: int = 512
    stop: str | None = None
    match: Literal["auto", "final", "whole"] = "auto"
    by: By = "perplexity"
    skip: bool = True
    group: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Prepared:
    """A curation that can run: nothing is measured or written yet."""

    rows: Records
    test: Records | None
    options: CurateOptions
    checkpoints: tuple[tuple[int, Path], ...]
    trajectory: Trajectory | None
    recorder: TrajectoryRecorder

    @property
    def cost(self) -> str:
        """What it takes, in one sentence."""
        if self.trajectory is not None:
            return "nothing is sampled: the trajectory is given"
        paths = [path for _, path in self.checkpoints]
        found = self.recorder.cost(paths, self.rows, test=self.test or ())
        saved = ", fewer where solutions are copied" if self.options.skip else ""
        return (
            f"{found['checkpoints']:.0f} checkpoints: {found['solutions_scored']:,.0f} solutions scored, "
            "up to "
            f"{found['completions']:,.0f} completions of at most {self.options.max_new_tokens} tokens{saved}"
        )

    def spec(self) -> dict[str, Any]:
        """What makes two curations the same one, the code included."""
        weights = [
            [step, [files.sha256_file(file) for file in sorted(path.glob("*.safetensors"))]]
            for step, path in self.checkpoints
        ]
        given = self.trajectory
        return {
            "rows": self.rows.sha256, "test": None if self.test is None else self.test.sha256,
            "checkpoints": weights, "options": asdict(self.options), "code": code_version(__name__),
            "trajectory": None if given is None else files.sha256_bytes(
                given.train_logppl.tobytes() + given.train_correct.tobytes() + given.steps.tobytes()
            ),
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Curated:
    """The plan, rows that were merely copied, the predicted test accuracy, and what to know about them."""

    prepared: Prepared
    trajectory: Trajectory
    threshold: float
    plan: CurationPlan | None
    fragile: pd.DataFrame
    predicted: Estimate
    notes: Notes
    sentences: tuple[str, ...]
    stored: bool = False


def prepare(
    rows: Records,
    options: CurateOptions,
    *,
    checkpoints: Path | str | None = None,
    trajectory: Path | str | Trajectory | None = None,
    run: str | None = None,
    test: Records | None = None,
) -> Prepared:
    """Check everything that costs no pass. `run` names one of several runs in a trajectory file.

    Raises InputError for neither or both of checkpoints and trajectory, rows that are no queries with
    solutions, a trajectory of other rows, a field no row has, and options out of range.
    """
    check_rows(rows)
    if test is not None:
        check_rows(test)
    _check_options(rows, options)
    if (checkpoints is None) == (trajectory is None):
        both = "both" if checkpoints is not None else "neither"
        raise InputError(
            f"{both} of checkpoints and trajectory is given", fix="give --checkpoints or --trajectory"
        )
    recorder = TrajectoryRecorder(
        k=options.k, temperature=options.temperature, top_p=options.top_p, stop=options.stop,
        max_new_tokens=options.max_new_tokens, memorised_by=options.by, seed=options.seed,
        skip_below=_skip(options), **_matcher(rows, options),
    )  # fmt: skip
    recorder._checked()
    if checkpoints is not None:
        return Prepared(rows, test, options, find_checkpoints(checkpoints), None, recorder)
    assert trajectory is not None
    given = trajectory if isinstance(trajectory, Trajectory) else Trajectory.load(trajectory, run)
    _check_trajectory(given, rows, options)
    return Prepared(rows, test, options, (), given, recorder)


def curate(
    prepared: Prepared,
    *,
    runs: Path | str,
    report: Callable[[str], None] = lambda text: None,
    executor: Any = None,
) -> Curated:
    """Record what is missing and plan. A killed curation goes on at the checkpoint it was in."""
    with Run.open(runs, "curate", prepared.spec()) as run:
        stored = run.finished
        traj = prepared.trajectory or _recorded(prepared, run, report, executor)
        run.finish()
    return _planned(prepared, traj, stored)


def _recorded(prepared: Prepared, run: Run, report: Callable[[str], None], executor: Any) -> Trajectory:
    path = run.folder("trajectory") / "trajectory.npz"
    if path.exists():
        return Trajectory.load(path)
    report(prepared.cost)
    prepared.recorder.fit(
        [folder for _, folder in prepared.checkpoints], prepared.rows,
        steps=[step for step, _ in prepared.checkpoints], test=prepared.test or (), executor=executor,
        store=run.folder("checkpoints"), report=report, name="run",
    )  # fmt: skip
    prepared.recorder.save(path)
    return Trajectory.load(path)


def _planned(prepared: Prepared, traj: Trajectory, stored: bool) -> Curated:
    options = prepared.options
    threshold, said = _threshold(traj, options)
    told = notes(traj, threshold)
    groups = None
    if options.group is not None:
        groups = [str(row.fields.get(options.group, "")) for row in prepared.rows]
    plan: CurationPlan | None = None
    try:
        plan = CurationPlan(traj, options.cutoff, options.budget, threshold, groups)
    except InputError as error:
        said.append(f"There is no plan: {error}")
    predicted = predicted_accuracy(traj, threshold, seed=options.seed)
    fragile = fragile_examples(traj, threshold)
    return Curated(
        prepared, traj, threshold, plan, fragile, predicted, told, (*said, *told.sentences), stored
    )


def _threshold(traj: Trajectory, options: CurateOptions) -> tuple[float, list[str]]:
    from glasshouse.attribution.pre_memorization.calibration import calibrate_threshold

    if isinstance(options.threshold, float | int):
        return float(options.threshold), []
    by = str(traj.meta.get("memorised_by", options.by))
    if by == "overlap":
        said = "Copies were looked for in samples (ROUGE-L of 0.95 and more): they are found later than by "
        return OVERLAP_THRESHOLD, [said + "perplexity, and predictions lean upwards."]
    if options.threshold == "flat":
        found = calibrate_threshold(traj, labels=False)
        said = f"The threshold {found.threshold:.1f} was chosen without test accuracy: on the authors' "
        return found.threshold, [said + "records this rule misses their best threshold by far."]
    said = (
        f"The threshold {DEFAULT_THRESHOLD} belongs to Llama-3-8B on GSM8K: another model or data set needs "
    )
    return DEFAULT_THRESHOLD, [said + "its own (calibrate_threshold on runs with test rows)."]


def _skip(options: CurateOptions) -> float | None:
    if not options.skip or options.by == "overlap" or options.threshold == "flat":
        return None  # a threshold that is chosen later cannot decide what to sample now
    return DEFAULT_THRESHOLD if options.threshold is None else float(options.threshold)


def _matcher(rows: Sequence[Any], options: CurateOptions) -> dict[str, Any]:
    stated = np.mean([final_answer(reference(row)) is not None for row in rows])
    final = options.match == "final" or (options.match == "auto" and stated >= STATED)
    if options.match == "auto" and 0 < stated < STATED:
        raise InputError(
            f"{stated:.0%} of solutions state a final answer ('#### 7', 'The answer is 7')",
            fix="drop the others, or choose --match final or --match whole",
        )
    return {} if final else {"matcher": whole_reply}


def _check_options(rows: Sequence[Any], options: CurateOptions) -> None:
    if options.budget < 1:
        raise InputError(f"it is {options.budget}", where="--budget", fix="give at least 1")
    if not 0 < options.cutoff <= 1:
        raise InputError(f"it is {options.cutoff}", where="--cutoff", fix="give a number in (0, 1]")
    if options.match not in ("auto", "final", "whole"):
        raise InputError(f"there is no {options.match!r}", where="--match", fix="auto, final or whole")
    number = options.threshold
    if number is not None and number != "flat" and not np.isfinite(number):
        raise InputError(f"it is {number}", where="--threshold", fix="give log(log p), or flat")
    if options.group is not None and not any(options.group in row.fields for row in rows):
        raise InputError(f"no row has the field {options.group!r}", where="--group", fix="name a column")


def _check_trajectory(given: Trajectory, rows: Sequence[Any], options: CurateOptions) -> None:
    if given.n_rows != len(rows):
        raise InputError(
            f"it is about {given.n_rows} rows and {len(rows)} are given", where=given.name,
            fix="give the rows that were recorded",
        )  # fmt: skip
    ids = tuple(row.id for row in rows)
    if given.row_ids not in (ids, tuple(map(str, range(len(ids))))):
        raise InputError("its rows are not the given ones", where=given.name, fix="give the recorded rows")
