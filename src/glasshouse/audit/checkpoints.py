"""The checkpoints of the audited model's own training, for the checks that follow a row through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from glasshouse.evidence.checks import Question
from glasshouse.runtime import files

NEED = "checkpoints"


@dataclass(frozen=True)
class TrainedQuestion(Question):
    """A question that may look at the run as well: (step, folder) of its checkpoints, by step."""

    checkpoints: tuple[tuple[int, Path], ...] = ()


def checkpoints_of(question: Question) -> tuple[tuple[int, Path], ...]:
    """The checkpoints that come with a question; none where the audit was given none."""
    return getattr(question, "checkpoints", ())


def run_folder(question: Question) -> str:
    """Where the checkpoints lie, as the user typed it."""
    return str(Path(str(checkpoints_of(question)[0][1])).parent)


def describe(checkpoints: Sequence[tuple[int, Path]]) -> list[list[str | int]]:
    """Step and hash of the weights of each checkpoint: what makes two audits the same one, without paths."""
    return [[step, files.sha256_json(_weights(folder))] for step, folder in checkpoints]


def _weights(folder: Path) -> list[list[str]]:
    return [[path.name, files.sha256_file(path)] for path in sorted(folder.glob("*.safetensors"))]
