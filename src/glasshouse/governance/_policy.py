"""What must be disclosed: a named policy of the card's type, or a YAML file of the user.

name: my-policy
require: [/reward_model, /policy/algorithm]   # JSON pointers; a section stands for all its fields
justified: true            # a field may instead say in its note why it is not disclosed
any_of_section: false      # true: one disclosed or justified field answers for a required section
coverage: {Policy: 0.5}    # least share of disclosed fields by section title
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationError

from glasshouse.governance._card import Card, CardField, Share, Strict
from glasshouse.governance._errors import CardError
from glasshouse.governance._lint import Issue, coverage
from glasshouse.governance._plain import canonical, parse_yaml, read_text

if TYPE_CHECKING:
    from glasshouse.governance._types import CardType


class Policy(Strict):
    """What a card must disclose; see the module."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    require: list[str] = Field(default_factory=list)
    justified: bool = True
    any_of_section: bool = False
    coverage: dict[str, Share] = Field(default_factory=dict)


def read_policy(kind: CardType, policy: str | Path | Mapping[str, Any] | None) -> Policy:
    """The policy called so in the card's type, or in a file; None is the type's first one.

    Raises CardError for an unknown name or a file that is no policy.
    """
    if policy is None:
        policy = next(iter(kind.policies), "nothing")
        if policy == "nothing":
            return Policy(name="nothing")
    data: Any = policy
    if not isinstance(policy, Mapping):
        name = str(policy)
        if name in kind.policies:
            data = {"name": name, **kind.policies[name]}
        elif Path(name).suffix in (".yaml", ".yml") or Path(name).is_file():
            data = parse_yaml(read_text(name), where=name)
        else:
            choices = ", ".join(kind.policies) or "none"
            raise CardError.of(
                "E-PARSE", f"no policy is called {name!r}", fix=f"choose from {choices}, or a file"
            )
    try:
        return Policy.model_validate_json(canonical(data))
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"]))
        raise CardError.of(
            "E-PARSE", f"this is no policy ({at}: {first['msg']})", where=str(policy)
        ) from error


def check_policy(card: Card, policy: Policy) -> Iterator[Issue]:
    """One E-COVERAGE per field or section that the policy asks for and the card leaves open."""
    fields = dict(card.fields())
    for wanted in policy.require:
        below = {p: f for p, f in fields.items() if p == wanted or p.startswith(f"{wanted}/")}
        answered = {p: _answered(one, policy) for p, one in below.items()}
        if not below:
            yield Issue("E-COVERAGE", wanted, "the card has no such field")
        elif policy.any_of_section and not any(answered.values()):
            yield Issue("E-COVERAGE", wanted, "nothing here is disclosed or justified", _HINT)
        elif not policy.any_of_section:
            for pointer, one in below.items():
                if not answered[pointer]:
                    yield Issue("E-COVERAGE", pointer, f"it is {one.status}", _HINT)
    for title, (known, every) in coverage(card).items():
        least = policy.coverage.get(title)
        if least is not None and every and known / every < least:
            yield Issue("E-COVERAGE", "", f"{title}: {known} of {every} disclosed, {least:.0%} asked for")


_HINT = "disclose it, or say in its note why not"


def _answered(one: CardField[Any], policy: Policy) -> bool:
    if one.status == "disclosed" or one.commitment is not None:
        return True
    reason = one.status in ("undisclosed", "not_applicable") and len(one.note.split()) >= 3
    return policy.justified and reason
