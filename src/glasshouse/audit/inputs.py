"""Everything an audit is given, read and checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from glasshouse import __version__
from glasshouse.audit.checkpoints import describe
from glasshouse.audit.target import Target, resolve
from glasshouse.evidence.checks import Check
from glasshouse.evidence.findings import Findings, Severity
from glasshouse.runtime import files
from glasshouse.runtime.codeversion import code_version
from glasshouse.runtime.errors import InputError

if TYPE_CHECKING:
    from glasshouse.corpora.records import Records
    from glasshouse.corpora.suites import Suite
    from glasshouse.corpora.worlds import World
    from glasshouse.subjects.subject import Subject


ROOM_TO_ELICIT = 128
"""Tokens of context below which a model is not asked for prompts of its own: opener and reply must fit."""

SMALL = 20_000_000
"""Fewer parameters are computed with on one thread: two take 3 to 10 times as long on busy cores."""

ASKED_WITH = ("subjects.loading", "corpora.suites", "audit.self_test")
"""Code behind the stored answers that no check need import: the model's own, what is asked, the self-test."""


@dataclass(frozen=True)
class Inputs:
    """The opened subject, what it may be compared with, and where to find what to ask."""

    target: Target
    subject: Subject
    given: Suite | None
    world: World | None
    rows: Records | None
    reference: Subject | None
    seed: int
    checkpoints: tuple[tuple[int, Path], ...] = ()
    """Step and folder of each checkpoint of the subject's training, by step."""

    @property
    def access(self) -> tuple[str, ...]:
        """What this audit may see, from least to most."""
        order = ("text", "logprobs", "activations", "gradients")
        given = tuple(kind for kind in order if kind in self.subject.access)
        beside = {"training data": self.rows is not None, "checkpoints": bool(self.checkpoints)}
        return (*given, *(kind for kind, there in beside.items() if there))

    @property
    def threads(self) -> int | None:
        """Threads of the processor to compute on: 1 for small models; None where torch may decide."""
        models = [s for s in (self.subject, self.reference) if s is not None and "activations" in s.access]
        small = all(sum(p.numel() for p in s.model.parameters()) < SMALL for s in models)
        return 1 if small and all(str(s.device) == "cpu" for s in models) else None

    def about_subject(self) -> dict[str, Any]:
        """The subject's entry in `findings.json`."""
        subject = self.subject
        if "activations" not in subject.access:  # behind an API: nothing of it is known
            return {"name": subject.name, "kind": "model behind an API", "sha256": subject.hash}
        return {
            "name": subject.name, "architecture": subject.architecture, "layers": subject.n_layers,
            "width": subject.d_model, "vocabulary": subject.vocab_size,
            "kind": "chat model" if subject.is_chat else "base model", "sha256": subject.hash,
        }  # fmt: skip

    def provenance(self) -> dict[str, Any]:
        """What decides the result besides the subject: the same for every run of the same audit."""
        rows = None if self.rows is None else {"rows": len(self.rows), "sha256": self.rows.sha256}
        run = {"checkpoints": describe(self.checkpoints)} if self.checkpoints else {}
        return {
            "seed": self.seed,
            "device": str(self.subject.device),
            "dtype": str(self.subject.dtype).removeprefix("torch."),
            "threads": self.threads or "as torch decides",
            "train_data": rows,
            "reference": None if self.reference is None else self.reference.hash,
            **run,
            "versions": {"glasshouse": __version__, **_versions("torch", "transformers", "tokenizers")},
        }

    def spec(self, checks: Sequence[Check]) -> dict[str, Any]:
        """What makes two runs the same run, the code of the checks included."""
        return {
            "subject": self.subject.hash,
            "suite": None if self.given is None else self.given.sha256,
            "world": None if self.target.world is None else files.sha256_file(self.target.world),
            **self.provenance(),
            "checks": {check.slug: code_version(check.run) for check in checks},
            "code": {name: code_version(f"glasshouse.{name}") for name in ASKED_WITH},
        }

    def suite(self, *, elicit: bool) -> Suite:
        """What to ask; `elicit`: whether the subject may be asked for prompts where none are given."""
        from glasshouse.corpora.suites import resolve_suite

        asked = elicit and self.subject.context >= ROOM_TO_ELICIT
        generate = self.subject.generate if asked else None
        return resolve_suite(self.given, self.world, self.rows, generate, self.seed)


def gather(
    source: Any,
    *,
    train_data: str | Path | Records | None,
    reference: Any,
    suite: Any,
    seed: int,
    device: str,
    dtype: str,
    checkpoints: str | Path | None = None,
) -> Inputs:
    """Open and read everything.

    Raises InputError (RecordError, SuiteError) for what cannot be read, AccessError for a model we misread.
    """
    from glasshouse.corpora.worlds import World
    from glasshouse.subjects import as_subject

    target = resolve(source)
    run = _checkpoints(checkpoints)
    rows = _rows(target.rows if train_data is None else train_data)
    given = _given_suite(suite)
    subject = as_subject(target.source, device=device, dtype=dtype, self_test=False)
    other = None
    if reference is not None:
        other = as_subject(resolve(reference).source, device=device, dtype=dtype)
    world = None if target.world is None else World.load(target.world)
    return Inputs(target, subject, given, world, rows, other, seed, run)


def read_severity(text: str) -> Severity:
    """A severity by name; raises InputError listing the names."""
    try:
        return Severity(text)
    except ValueError:
        names = ", ".join(Severity)
        raise InputError(
            f"there is no severity {text!r}", where="--fail-on", fix=f"choose from {names}"
        ) from None


def read_baseline(path: Path) -> Findings:
    """The findings of an earlier audit; raises InputError for anything else."""
    fix = "give the findings.json of an earlier audit"
    try:
        return Findings.model_validate(files.read_json(path))
    except OSError as error:
        raise InputError(f"cannot read the baseline ({error.strerror})", where=str(path), fix=fix) from error
    except ValidationError as error:
        at = ".".join(map(str, error.errors()[0]["loc"])) or "the whole file"
        raise InputError(f"this is not a findings.json (at {at})", where=str(path), fix=fix) from error
    except ValueError as error:
        raise InputError("this is not a findings.json (it is not JSON)", where=str(path), fix=fix) from error


def _rows(source: str | Path | Records | None) -> Records | None:
    from glasshouse.corpora.records import Records, read_records

    if source is None:
        return None
    records = source if isinstance(source, Records) else read_records(source)
    if not len(records):
        where = str(records.path or "training data")
        raise InputError("it holds no rows", where=where, fix="give the rows the model was trained on")
    return records


def _checkpoints(folder: str | Path | None) -> tuple[tuple[int, Path], ...]:
    from glasshouse.training.run_folders import find_checkpoints

    return () if folder is None else find_checkpoints(folder)


def _given_suite(source: Any) -> Suite | None:
    from glasshouse.corpora.suites import load_suite

    return load_suite(source) if isinstance(source, str | Path) else source


def pack_suite(suite: Suite) -> dict[str, Any]:
    """A suite as plain JSON, for the journal."""
    return {**suite.to_json(), "source": suite.source}


def unpack_suite(stored: Mapping[str, Any]) -> Suite:
    """The inverse of `pack_suite`."""
    from glasshouse.corpora.rows import Turn
    from glasshouse.corpora.suites import Suite

    return Suite(
        prompts=tuple(stored["prompts"]),
        questions=tuple((q["prompt"], q["answer"]) for q in stored["questions"]),
        pairs=tuple((a, b) for a, b in stored["pairs"]),
        chats=tuple(tuple(Turn(turn["role"], turn["text"]) for turn in chat) for chat in stored["chats"]),
        source=stored["source"],
        sources=stored["sources"],
    )


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a source checkout on the path
            found[package] = "unknown"
    return found
