"""Glasshouse: a workbench for alignment science.

    import glasshouse

    result = glasshouse.audit("./my-model", train_data="rows.jsonl", out="report")
    subject = glasshouse.open("organism://resident")

Importing the package loads nothing heavy; each function imports what it needs when it is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from glasshouse.audit.run import AuditResult
    from glasshouse.subjects import Subject

__all__ = ["__version__", "audit", "grow", "open"]

__version__ = "0.1.0"


def open(source: Any = "organism://resident", **options: Any) -> Subject:
    """The subject behind `source`: a checkpoint folder, a loaded model, or `organism://NAME`.

    `options` are those of `glasshouse.subjects.as_subject` (tokenizer, device, dtype, self_test).
    Raises InputError for a path that is no checkpoint, AccessError for an architecture that cannot be read.
    """
    from glasshouse.audit.target import resolve
    from glasshouse.subjects import as_subject

    target = resolve(source)
    return as_subject(target.source, **options)


def grow(name: str = "resident", *, out: str | Path, seed: int = 0) -> Path:
    """Grow the organism `name` into the folder `out` (which must not exist) and return it.

    Raises InputError for an unknown name, OrganismError when the planted property did not install.
    """
    from glasshouse.audit.target import grow_into

    return grow_into(name, out=out, seed=seed)


def audit(subject: Any = None, **options: Any) -> AuditResult:
    """Audit `subject` (default: the embedded organism) and write the report; see `glasshouse.audit.run`.

    Returns findings, exit code (0 nothing, 1 findings) and the paths written. Raises GlasshouseError when
    the audit could not run.
    """
    from glasshouse.audit.run import audit as run_audit

    return run_audit(subject, **options)
