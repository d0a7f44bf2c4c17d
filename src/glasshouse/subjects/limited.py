"""A model of which one sees less than there is: what it says and how probable that was, and nothing inside.

For measuring what an audit, a detector or an attack can do from outside, on a model whose weights one has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from torch import Tensor

from glasshouse.corpora.rows import Turn
from glasshouse.runtime import files
from glasshouse.runtime.errors import AccessError
from glasshouse.subjects.generation import Completion, Sample
from glasshouse.subjects.patches import Patch
from glasshouse.subjects.prompts import Prompt
from glasshouse.subjects.subject import Subject

OUTSIDE = frozenset({"text", "logprobs"})
"""The access of a `TextSubject`."""


class TextSubject(Subject):
    """`subject` from outside: it generates, gives next-token log-probabilities, and scores completions.

    Its tokenizer may be seen, as those of models behind an API may. Whatever looks inside (`model`, `parts`,
    `run`, `patched`, `unembed`, `attention`, `self_test`, patches, ...) raises AccessError.

    >>> TextSubject(subject).access == {"text", "logprobs"}  # doctest: +SKIP
    True
    """

    def __init__(self, subject: Subject, *, name: str = "") -> None:
        # Kept in closures: no attribute of this object is the model.
        self._asks: dict[str, Callable[..., Any]] = {
            "generate": lambda *given, **how: subject.generate(*given, **how),
            "generate_ids": lambda *given, **how: subject.generate_ids(*given, **how),
            "logprobs": lambda *given, **how: subject.logprobs(*given, **how),
            "score": lambda *given, **how: subject.score(*given, **how),
        }
        self.name = name or subject.name
        self.tokenizer = subject.tokenizer
        self.meta: Mapping[str, Any] = {}
        self.hash = files.sha256_json({"seen from outside": subject.hash})
        self._device, self._dtype, self._stop = subject.device, subject.dtype, subject.stop_ids
        self._vocab_size, self._context = subject.vocab_size, subject.context

    def __repr__(self) -> str:
        return f"TextSubject({self.name!r}, {', '.join(sorted(OUTSIDE))})"

    access = OUTSIDE

    @property
    def device(self) -> str:
        """Where it computes."""
        return self._device

    @property
    def dtype(self) -> Any:
        """Its number format."""
        return self._dtype

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self._vocab_size

    @property
    def context(self) -> int:
        """The longest row it can read, in tokens."""
        return self._context

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end a reply."""
        return self._stop

    def generate(
        self, prompts: Sequence[Prompt], *, patches: Sequence[Patch] = (), **how: Any
    ) -> list[list[Completion]]:
        """As `Subject.generate`; raises AccessError for patches."""
        return self._ask("generate", prompts, patches, how)

    def generate_ids(
        self, prompts: Sequence[Prompt], *, patches: Sequence[Patch] = (), **how: Any
    ) -> list[list[Sample]]:
        """As `Subject.generate_ids`; raises AccessError for patches."""
        return self._ask("generate_ids", prompts, patches, how)

    def logprobs(self, prompts: Sequence[Prompt], *, patches: Sequence[Patch] = (), **how: Any) -> Tensor:
        """As `Subject.logprobs`; raises AccessError for patches."""
        return self._ask("logprobs", prompts, patches, how)

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str | Sequence[int]],
        *,
        patches: Sequence[Patch] = (),
        **how: Any,
    ) -> Any:
        """As `Subject.score`; raises AccessError for patches."""
        return self._ask("score", prompts, patches, {"completions": completions, **how})

    def encode(self, prompt: str | Sequence[Turn]) -> list[int]:
        """The token ids of one prompt."""
        return self.encode_all([prompt])[0]

    @property
    def model(self) -> Any:
        """Raises AccessError."""
        self._refuse("the model")

    @property
    def parts(self) -> Any:  # type: ignore[override]
        """Raises AccessError."""
        self._refuse("its parts")

    def _ask(self, what: str, prompts: Any, patches: Sequence[Patch], how: Mapping[str, Any]) -> Any:
        if patches:
            self._refuse("an edit inside the model")
        return self._asks[what](prompts, **how)

    def _refuse(self, what: str) -> NoReturn:
        raise AccessError(
            f"{what} needs activations, and this subject gives {' and '.join(sorted(OUTSIDE))} only",
            where=self.name,
            fix="open the checkpoint itself",
        )
