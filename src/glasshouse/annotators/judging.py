"""Which judge a behaviour task gets: the model in a role, or a named offline one; never one for the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from glasshouse.annotators._errors import AnnotatorUnavailable
from glasshouse.annotators._spending import Budget
from glasshouse.annotators._types import Annotator
from glasshouse.runtime.errors import InputError

Which = Literal["auto", "lm", "oracle", "rule"]


def judge(
    which: Which = "auto",
    *,
    role: str = "grader",
    oracle: Annotator | Callable[..., Any] | None = None,
    rule: Annotator | Callable[..., Any] | None = None,
    budget: Budget | None = None,
    **options: Any,
) -> Annotator:
    """The judge of a task: the model of `role` where one is given to the evaluation, else the offline one.

    `which` names one kind and is never replaced by another: 'lm' without a model in the role, 'oracle' or
    'rule' without one given, raise AnnotatorUnavailable. 'auto' takes the model of the role, else the oracle,
    else the rule; a result says by its `kind` which it was. A function becomes an OracleAnnotator (predicate,
    text, metadata) or a RuleAnnotator (text). `options` go to the LMAnnotator.

    Call it inside the scorer: roles are known only while an evaluation runs.
    """
    if which not in ("auto", "lm", "oracle", "rule"):
        raise InputError(f"the judge {which!r} is unknown", fix="name 'auto', 'lm', 'oracle' or 'rule'")
    model = role_model(role) if which in ("auto", "lm") else None
    if model is not None:
        from glasshouse.annotators.lm import LMAnnotator

        return LMAnnotator(model, budget=budget, **options)
    if which in ("auto", "oracle") and oracle is not None:
        return _oracle(oracle)
    if which in ("auto", "rule") and rule is not None:
        return _rule(rule)
    raise AnnotatorUnavailable(
        f"there is no judge of kind {which!r}",
        where=f"role {role}",
        fix=f"run with --model-role {role}=provider/model, or choose a judge this task ships",
    )


def role_model(role: str) -> Any:
    """The model bound to a role of the running evaluation, or None; never the model under test."""
    from inspect_ai.model import model_roles

    bound = model_roles().get(role)
    return bound[0] if isinstance(bound, list) else bound


def _oracle(given: Any) -> Annotator:
    from glasshouse.annotators.oracle import OracleAnnotator

    return given if hasattr(given, "arate") else OracleAnnotator(rate=given)


def _rule(given: Any) -> Annotator:
    from glasshouse.annotators.oracle import RuleAnnotator

    return given if hasattr(given, "arate") else RuleAnnotator(given)
