"""Run a study: open or resume its run, store what it yields at once, finish."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from glasshouse.evidence._ledger_figures import store_figures
from glasshouse.evidence.claims import Claim
from glasshouse.evidence.ledger import write_claims
from glasshouse.runtime import files
from glasshouse.runtime.cache import Cache
from glasshouse.runtime.devices import pick_device
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.progress import Progress, notice
from glasshouse.runtime.runs import Run
from glasshouse.studies._lab import Lab
from glasshouse.studies._study import Figure, Study, Table, Yield

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
NOT_YIELDED = "the run ended without yielding this claim"


@dataclass(frozen=True)
class StudyResult:
    """What a finished run of a study holds: `record` is what `claims.json` in `folder` says."""

    study: Study
    folder: Path
    record: Mapping[str, Any]

    @property
    def claims(self) -> list[dict[str, Any]]:
        """One row per declared claim, in the order of declaration."""
        return list(self.record["claims"])

    def to_ledger(self, folder: Path | str) -> Path:
        """Write `<folder>/<slug>.json`: the claims, the run, and the history of their thresholds.

        The run's figures are drawn beside it, as `<folder>/figures/<slug>/*.svg`; one that cannot be drawn so
        is told on the display.
        """
        for name, why in store_figures(folder, self.folder).left_out.items():
            notice(f"{self.study.slug}: the figure {name} is not drawn beside the ledger: {why}")
        return write_claims(folder, self.record, sources=self.study.files)


def run_study(
    study: Study,
    *,
    config: str = "laptop",
    seeds: int | None = None,
    out: Path | str = "glasshouse-runs",
    device: str = "auto",
    cache: Cache | None = None,
) -> StudyResult:
    """Run `study` under `out`, or resume a killed run, or return a finished one with the same settings.

    `seeds` is how many (default: the configuration's `seeds`, else 1); the configuration, the seeds, the
    device and the code version are the run's identity. Raises InputError for an unknown configuration, a
    yield that was not declared, or one yielded twice.
    """
    settings = study.config(config)
    chosen = _seeds(settings, seeds)
    spec: dict[str, Any] = {
        "study": study.slug,
        "config": {"name": config, "values": dataclasses.asdict(settings)},
        "seeds": list(chosen),
        "device": pick_device(device),
        "code": study.code,
    }
    with Run.open(out, study.slug, spec) as run:
        if not run.finished:
            with Progress() as progress:
                lab = Lab(
                    study, run, seeds=chosen, device=spec["device"], progress=progress, cache=cache or Cache()
                )  # fmt: skip
                _consume(study, settings, lab)
            _close(study, run)
        return StudyResult(study, run.path, files.read_json(run.path / "claims.json"))


def _seeds(settings: Any, asked: int | None) -> tuple[int, ...]:
    count = asked if asked is not None else int(getattr(settings, "seeds", 1))
    if count < 1:
        raise InputError(f"seeds is {count}", fix="give at least one seed")
    return tuple(range(count))


def _consume(study: Study, settings: Any, lab: Lab) -> None:
    """Drive the generator; each yield is on disk before the generator goes on."""
    seen: set[str] = set()
    for item in study.function(settings, lab):
        key = _key(study, item)
        if key in seen:
            raise InputError(f"study {study.slug!r} yields {key} twice", fix="give each yield its own name")
        seen.add(key)
        _store(lab.run, key, item)
        lab.progress.say(f"{study.slug}: {item.spec.id} {item.verdict}" if isinstance(item, Claim) else key)


def _key(study: Study, item: Yield) -> str:
    if isinstance(item, Claim):
        if study.spec(item.spec.id) != item.spec:
            raise InputError(
                f"claim {item.spec.id!r} departs from its declaration", fix="make it with lab.claim(...)"
            )
        return f"claim {item.spec.id}"
    if isinstance(item, Figure | Table):
        if not _NAME.fullmatch(item.name):
            raise InputError(f"{item.name!r} is not a usable name", fix="use letters, digits, _, - and .")
        return f"{type(item).__name__.lower()} {item.name}"
    raise InputError(
        f"study {study.slug!r} yields a {type(item).__name__}", fix="yield a Claim, a Figure or a Table"
    )


def _store(run: Run, key: str, item: Yield) -> None:
    """Journal the item; what an earlier, killed execution stored stays as it is."""

    def build() -> Any:
        if isinstance(item, Claim):
            return item.to_json()
        if isinstance(item, Figure):
            return _relative(
                run, files.write_json(run.folder("figures") / f"{item.name}.json", item.to_json())
            )
        return _relative(run, _write_table(run.folder("tables") / f"{item.name}.parquet", item))

    run.step(f"yield/{key}", build)


def _relative(run: Run, path: Path) -> str:
    return path.relative_to(run.path).as_posix()


def _write_table(path: Path, table: Table) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = table.to_rows()
    try:
        arrow = pa.Table.from_pylist(rows)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(f"table {table.name!r} mixes types in a column ({error})") from error
    with files.atomic_path(path) as temporary:
        pq.write_table(arrow, temporary)
    return path


def _close(study: Study, run: Run) -> None:
    """Write `claims.json`, then finish the run."""
    if "when" not in run.notes:
        run.note("when", datetime.now(UTC).isoformat(timespec="seconds"))
        run.note(
            "versions", {name: version(name) for name in ("glasshouse", "torch", "transformers", "numpy")}
        )
    steps = run.steps
    claims = [steps.get(f"yield/claim {spec.id}") or spec.not_run(NOT_YIELDED) for spec in study.claims]
    record = {"wing": study.wing, "run": run.path.name, **run.spec, **run.notes, "claims": claims}
    files.write_json(run.path / "claims.json", record)
    run.finish()


def outputs(folder: Path) -> Sequence[Path]:
    """Figures and tables of a run, for printing."""
    return sorted([*folder.glob("figures/*.json"), *folder.glob("tables/*.parquet")])
