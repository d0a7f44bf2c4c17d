"""The audit: which checks this access allows, run, rank, report; and the grader of the auditing game."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glasshouse.audit.run import AuditResult


class _Callable(ModuleType):
    """Importing this package puts it in the place of the facade's function `glasshouse.audit`.

    So that `glasshouse.audit(...)` works before and after, calling the package audits.
    """

    def __call__(self, subject: Any = None, **options: Any) -> AuditResult:
        from glasshouse.audit.run import audit

        return audit(subject, **options)


sys.modules[__name__].__class__ = _Callable
