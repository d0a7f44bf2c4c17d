"""Inspect logs as tables: one row per sample, whoever wrote the log.

Only samples of successful evaluations carry numbers. Everything else (cancelled, failed, still running,
unreadable) is listed in `frame.attrs["left_out"]` and its scores are NaN, so that no average can include it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from inspect_ai.log import EvalLog, EvalSampleSummary

LETTERS = {"C": 1.0, "I": 0.0, "P": 0.5, "N": math.nan}
"""Inspect's grades: correct, incorrect, partial, and no answer, which is not the same as a wrong one."""

SETTINGS = ("temperature", "top_p", "top_k", "max_tokens", "seed")
PROMOTED = ("arm", "pair_id", "group")
"""Metadata every task of ours has: columns without a prefix as well."""

GIVEN = "_given_"

Logs = str | Path | Sequence[str | Path]


def read_logs(logs: Logs) -> list[EvalLog]:
    """The headers of every log under a folder (or of the files given), oldest first.

    Raises InputError where there is no log, naming the place.
    """
    from inspect_ai.log import read_eval_log

    return [read_eval_log(str(path), header_only=True) for path in log_files(logs)]


def log_files(logs: Logs) -> list[Path]:
    """The log files under folders, or the files themselves, by name, which starts with their time."""
    places = [logs] if isinstance(logs, str | Path) else list(logs)
    found = [file for place in places for file in _files_at(Path(place).expanduser())]
    if not found:
        raise InputError("there are no Inspect logs", where=", ".join(map(str, places)), fix="run some first")
    return found


def scores_df(logs: Logs) -> pd.DataFrame:
    """One row per sample and epoch.

    Columns: `log, created, task, model, status, counted, sample, id, epoch, arm, pair_id, group, target,
    error, limit, input_tokens, output_tokens`, then `metadata_*`, `task_arg_*`, `model_arg_*`, `config_*`.
    Per scorer `score_<scorer>` (numbers; C/I/P become 1/0/0.5, N and unparsed NaN) or, where the score is a
    dictionary, `score_<scorer>_<key>`, beside `answer_<scorer>` and `reason_<scorer>`.

    `attrs["left_out"]` lists logs that did not succeed, `attrs["unparsed"]` counts per score column the
    samples without a usable score, `attrs["quantities"]` names score columns that are ranks, counts or the
    like, as their scorers declare (`@scorer(metrics=..., quantities=("rank",))`): never shares, whatever
    their values. Raises InputError where there is no log.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    quantities: set[str] = set()
    for path in log_files(logs):
        log, samples, problem = _read(path)
        found = [_row(path, log, sample) for sample in samples] if log is not None else []
        rows += found
        quantities |= set() if log is None else _quantities(log)
        if log is None or log.status != "success":
            left_out.append(_left_out(path, log, len(found), problem))
    frame = pd.DataFrame(_once(rows))
    unparsed = _unparsed(frame)
    frame = frame[[column for column in frame.columns if not column.startswith(GIVEN)]].copy()
    frame.attrs |= {"left_out": left_out, "unparsed": unparsed, "quantities": sorted(quantities)}
    return frame


def score_columns(frame: pd.DataFrame) -> list[str]:
    """The columns of a frame that hold numeric scores."""
    return [c for c in frame.columns if c.startswith("score_") and frame[c].dtype.kind in "fiu"]


def write_scores(frame: pd.DataFrame, path: str | Path) -> Path:
    """Write a frame as Parquet, atomically. Columns of mixed types are written as text."""
    target = Path(path)
    plain = frame.copy()
    for column in plain.columns:
        if plain[column].dtype == object and plain[column].map(type).nunique() > 1:
            plain[column] = plain[column].map(lambda value: None if value is None else str(value))
    with files.atomic_path(target) as temporary:
        plain.to_parquet(temporary, index=False)
    return target


def query(sql: str, **frames: pd.DataFrame | str | Path) -> pd.DataFrame:
    """Ask frames, or Parquet files, in SQL through DuckDB, which only asks: nothing is stored.

    >>> query("select arm, avg(score_match) from scores group by arm", scores=frame)     # doctest: +SKIP
    """
    import duckdb

    with duckdb.connect() as connection:
        for name, frame in frames.items():
            table = connection.read_parquet(str(frame)) if isinstance(frame, str | Path) else frame
            connection.register(name, table)
        return connection.sql(sql).df()


def _files_at(place: Path) -> Iterable[Path]:
    if place.is_dir():
        return sorted((p for p in place.rglob("*") if _is_log(p)), key=lambda p: p.name)
    if not place.is_file():
        raise InputError("there is no such log or folder", where=str(place), fix="give a log or its folder")
    return [place]


def _is_log(path: Path) -> bool:
    if path.suffix == ".eval":
        return True
    # Folders of evaluation sets hold other JSON files too; logs begin with their time.
    return path.suffix == ".json" and path.name[:4].isdigit()


def _read(path: Path) -> tuple[EvalLog | None, Sequence[EvalSampleSummary], str]:
    from inspect_ai.log import read_eval_log, read_eval_log_sample_summaries

    try:
        log = read_eval_log(str(path), header_only=True)
    except Exception as error:  # a damaged file raises what its reader met first
        return None, (), f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    try:
        return log, read_eval_log_sample_summaries(str(path)), ""
    except Exception as error:
        return log, (), f"{type(error).__name__}: {error}"


def _left_out(path: Path, log: EvalLog | None, samples: int, problem: str) -> dict[str, Any]:
    if log is None:
        return {
            "log": str(path),
            "task": "",
            "model": "",
            "status": "unreadable",
            "samples": 0,
            "why": problem,
        }
    why = problem or (log.error.message if log.error is not None else "")
    return {
        "log": str(path), "task": log.eval.task, "model": log.eval.model, "status": log.status,
        "samples": samples, "why": why,
    }  # fmt: skip


def _row(path: Path, log: EvalLog, sample: EvalSampleSummary) -> dict[str, Any]:
    spec, metadata = log.eval, sample.metadata or {}
    usage = list(sample.model_usage.values())
    counted = log.status == "success" and sample.error is None
    row: dict[str, Any] = {
        "log": str(path),
        "created": spec.created,
        "task": spec.task.rpartition("/")[2],
        "model": spec.model,
        "status": log.status,
        "counted": counted,
        "sample": sample.uuid or f"{path}#{sample.id}#{sample.epoch}",
        "id": str(sample.id),
        "epoch": sample.epoch,
        **{name: metadata.get(name) for name in PROMOTED},
        "target": sample.target if isinstance(sample.target, str) else ",".join(sample.target),
        "error": sample.error,
        "limit": sample.limit,
        "input_tokens": sum(one.input_tokens for one in usage),
        "output_tokens": sum(one.output_tokens for one in usage),
    }
    row |= (
        _flat("metadata", metadata) | _flat("task_arg", spec.task_args) | _flat("model_arg", spec.model_args)
    )
    row |= {f"config_{name}": _setting(log, name) for name in SETTINGS}
    for name, score in (sample.scores or {}).items():
        parts = score.value if isinstance(score.value, dict) else {"": score.value}
        for key, value in parts.items():
            column = f"{name}_{key}" if key else name
            row[f"score_{column}"] = _number(value) if counted else math.nan
            row[f"{GIVEN}score_{column}"] = True
        row[f"answer_{name}"], row[f"reason_{name}"] = score.answer, score.reason
    return row


def _quantities(log: EvalLog) -> set[str]:
    """Score columns that their scorer declares to be no shares."""
    declared = {
        scorer.name.rpartition("/")[2]: (scorer.metadata or {}).get("quantities", ())
        for scorer in log.eval.scorers or ()
    }
    return {
        f"score_{name}_{key}" if key else f"score_{name}" for name, keys in declared.items() for key in keys
    }


def _setting(log: EvalLog, name: str) -> Any:
    """What the run or the task set, else what the model was opened with."""
    said = getattr(log.plan.config, name)
    return getattr(log.eval.model_generate_config, name) if said is None else said


def _flat(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"{prefix}_{key}": value if isinstance(value, str | int | float | bool | None) else str(value)
        for key, value in values.items()
    }


def _number(value: Any) -> Any:
    """A score as a number where it has one; other texts stay, and None is NaN, for no grade."""
    if value is None:
        return math.nan
    if isinstance(value, str):
        return LETTERS.get(value, value)
    return float(value) if isinstance(value, bool | int | float) else str(value)


def _once(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A sample a retry carried over stands in two logs; the row that counts stays, else the later."""
    kept: dict[str, dict[str, Any]] = {}
    for row in rows:
        before = kept.get(row["sample"])
        if before is None or row["counted"] or not before["counted"]:
            kept[row["sample"]] = row
    return list(kept.values())


def _unparsed(frame: pd.DataFrame) -> dict[str, int]:
    """Per score column, samples that count and were given no usable score by its scorer."""
    found = {}
    for column in score_columns(frame):
        given = frame[GIVEN + column].eq(True)  # no scorer of this name: not missing
        found[column] = int((frame["counted"] & given & frame[column].isna()).sum())
    return found
