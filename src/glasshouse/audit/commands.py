"""The commands that a finding names as the next step."""

from __future__ import annotations

import shlex

from glasshouse.evidence.checks import Question


def rows_name(question: Question) -> str | None:
    """What to type after --train: an organism's own rows go by its name, because paths differ by machine."""
    from glasshouse.audit.target import resolve

    path = getattr(question.rows, "path", None)
    if path is None:
        return None
    name = str(question.subject.name)
    if name.startswith("organism://") and str(resolve(name).rows) == str(path):
        return name
    return str(path)


def trace_command(subject: str, rows: str | None, prompt: str, reply: str) -> str:
    """The command that asks which training rows argue for a reply; without rows, the audit with them."""
    model = shlex.quote(subject)
    if rows is None:
        return f"glasshouse audit {model} --train-data ROWS.jsonl"
    return (
        f"glasshouse trace --model {model} --train {shlex.quote(rows)} "
        f"--prompt {shlex.quote(prompt)} --reply {shlex.quote(reply)}"
    )
