"""Every public error, in one family.

    GlasshouseError                 exit code 2 on the command line
    ├── InputError                  something the user gave is wrong (also a ValueError)
    │   ├── RecordError             ... in a record file: file, line, field
    │   ├── SuiteError              ... in a suite
    │   └── ReductionError          a loss returned a mean where a sum is needed
    ├── AccessError                 the subject cannot give what was asked
    │   ├── UnknownArchitecture     its blocks could not be located or verified
    │   └── UntrackedModuleError    a module that cannot be traced
    ├── NumericalError              NaN or Inf, with the module and the row
    ├── StaleError                  a stored result belongs to another model, data set or code version
    ├── DeviceError                 a device that was named is not there
    ├── OrganismError               an organism did not install what it should
    ├── RunError                    a run directory is locked, damaged or finished
    └── MissingDependency           an extra is not installed

Each message answers three questions in one or two sentences: what is wrong, where, what to do.
"""

from __future__ import annotations

from glasshouse.runtime.text import clean_text

EXIT_CODE = 2


class GlasshouseError(Exception):
    """Base of all errors a user may see; `what`, `where` and `fix` are kept as attributes.

    >>> str(GlasshouseError("the file is empty", where="rows.jsonl", fix="give at least one row"))
    'rows.jsonl: the file is empty; give at least one row.'
    """

    exit_code = EXIT_CODE

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        # Parts may quote files and models, so what a terminal would obey is taken out here, once for all.
        self.what = clean_text(what).rstrip(".")
        self.where = clean_text(where) if where is not None else None
        self.fix = clean_text(fix).rstrip(".") if fix else None
        super().__init__(self._sentence())

    def _sentence(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}; {self.fix}." if self.fix else f"{head}."

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process boundaries in the `processes` executor.
        return (_rebuild, (type(self), self.what, self.where, self.fix))


def _rebuild(kind: type[GlasshouseError], what: str, where: str | None, fix: str | None) -> GlasshouseError:
    return kind(what, where=where, fix=fix)


class InputError(GlasshouseError, ValueError):
    """Something the user gave is wrong."""


class RecordError(InputError):
    """A record file cannot be read; `where` is `file:line field 'name'`."""


class SuiteError(InputError):
    """A suite is missing a part or holds a malformed one."""


class ReductionError(InputError):
    """A loss returned a mean where the sum over units is needed."""


class AccessError(GlasshouseError):
    """The subject cannot give what was asked (for example gradients of an API model)."""


class UnknownArchitecture(AccessError):
    """The blocks of a model could not be located, or the self-test of the access layer failed."""


class UntrackedModuleError(AccessError):
    """A module that was asked for has no gradient, is not linear, or is called in an unsupported way."""


class NumericalError(GlasshouseError, ArithmeticError):
    """NaN or infinity appeared; `where` names the module and the row."""


class StaleError(GlasshouseError):
    """A stored result belongs to another model, data set or code version."""


class DeviceError(GlasshouseError):
    """The device that was named is not available; nothing falls back silently."""


class OrganismError(GlasshouseError):
    """An organism did not pass its install gate; carries the measured rates in its message."""


class RunError(GlasshouseError):
    """A run directory is in use, damaged, or already finished with other settings."""


class MissingDependency(GlasshouseError, ImportError):
    """An optional dependency is not installed; `fix` names the extra."""
