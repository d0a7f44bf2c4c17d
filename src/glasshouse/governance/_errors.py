"""What the cards refuse: an error of the family that also carries the stable code of the lint."""

from __future__ import annotations

from glasshouse.runtime.errors import InputError


class CardError(InputError):
    """A card or its file cannot be used; `code` is one of `glasshouse.governance.CODES`."""

    code = "E-PARSE"

    @classmethod
    def of(cls, code: str, what: str, *, where: str | None = None, fix: str | None = None) -> CardError:
        """An error with its code."""
        error = cls(what, where=where, fix=fix)
        error.code = code
        return error
