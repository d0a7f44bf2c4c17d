"""The subject: a model under study behind one interface, whatever its family."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from glasshouse.corpora.rows import Turn
from glasshouse.runtime.errors import InputError
from glasshouse.subjects import scoring
from glasshouse.subjects.architectures import locate, unwrap
from glasshouse.subjects.batches import check_rows
from glasshouse.subjects.generation import Completion, Sampling, generate_rows, texts
from glasshouse.subjects.hashing import check_finite, model_hash
from glasshouse.subjects.prompts import Prompt, encode_completions, encode_prompts, need_tokenizer

LOCAL_ACCESS = frozenset({"text", "logprobs", "activations", "gradients"})


class Subject:
    """An opened language model; get one from `as_subject`.

    Prompts are texts, sequences of `Turn`, or token ids. For a chat model (`is_chat`: its tokenizer has a
    chat template) texts and turns pass through the template with the generation prompt; for a base model a text
    is plain tokens. Not safe to share between threads while patches are active.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any = None,
        *,
        name: str = "",
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        self.model: Any = unwrap(model)
        self.parts = locate(self.model)
        check_finite(self.model)
        self.tokenizer = tokenizer
        self.name = name or type(self.model).__name__
        self.meta: Mapping[str, Any] = dict(meta or {})

    def __repr__(self) -> str:
        size = sum(parameter.numel() for parameter in self.model.parameters())
        return (
            f"Subject({self.name!r}, {self.architecture}, {size:,} parameters, {self.dtype}, {self.device})"
        )

    @property
    def access(self) -> frozenset[str]:
        """What may be seen of the subject: text, logprobs, activations, gradients."""
        return LOCAL_ACCESS if self.tokenizer is not None else LOCAL_ACCESS - {"text"}

    @property
    def device(self) -> str:
        """Where the weights are."""
        return str(next(self.model.parameters()).device)

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the weights."""
        dtype: torch.dtype = next(self.model.parameters()).dtype
        return dtype

    @property
    def is_chat(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    @cached_property
    def hash(self) -> str:
        """SHA-256 of weights, config and tokenizer; computed once: do not train a model under a subject."""
        return model_hash(self.model, self.tokenizer)

    @property
    def architecture(self) -> str:
        """The family's name in the architecture table."""
        return self.parts.architecture.name

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.parts.blocks)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.parts.d_model

    @property
    def n_heads(self) -> int:
        """Attention heads per block (queries; keys and values may have fewer)."""
        return self.parts.n_heads

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self.parts.vocab_size

    @property
    def context(self) -> int:
        """The longest row the model can read, in tokens."""
        return self.parts.context

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end a reply, as the checkpoint's generation settings say."""
        settings = getattr(self.model, "generation_config", None)
        for source in (settings, self.model.config, self.tokenizer):
            found = getattr(source, "eos_token_id", None)
            if found is not None:
                return (found,) if isinstance(found, int) else tuple(found)
        return ()

    # -- text ------------------------------------------------------------------------------------------------

    def encode(self, prompt: str | Sequence[Turn]) -> list[int]:
        """The token ids of one prompt."""
        return self.encode_all([prompt])[0]

    def encode_all(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """The token ids of many prompts, tokenised together. Raises InputError naming an empty one."""
        return encode_prompts(self.tokenizer, prompts, is_chat=self.is_chat)

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of token ids; special tokens are left out unless `special`."""
        return self._decode_all([list(ids)], special=special)[0]

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        n: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_new_tokens: int = 32,
        stop_ids: Sequence[int] | None = None,
        seed: int = 0,
        batch_tokens: int = 16384,
    ) -> list[list[Completion]]:
        """The n completions of each prompt; temperature 0 is greedy decoding.

        A completion depends on its prompt, `seed`, its row and sample number, never on the other rows. Raises
        InputError naming the first row that is empty or leaves no room for `max_new_tokens` in the context.
        """
        _check_sampling(n, temperature, top_p, max_new_tokens)
        need_tokenizer(self.tokenizer)
        rows = self._rows(prompts, more=max_new_tokens - 1)
        stop = self.stop_ids if stop_ids is None else tuple(stop_ids)
        how = Sampling(temperature, top_p, max_new_tokens, stop, seed)
        with self._forward():
            found = generate_rows(
                self.parts.base,
                self.parts.unembed,
                rows,
                n,
                how,
                batch_tokens=batch_tokens,
                place=self._place,
                device=self.device,
            )
        return texts(found, self._decode_all)

    # -- probabilities ---------------------------------------------------------------------------------------

    def logprobs(self, prompts: Sequence[Prompt], *, batch_tokens: int = 8192) -> Tensor:
        """Next-token log-probabilities after each prompt, in nats: float32 [N, V] on the CPU.

        Raises InputError naming the first row that is empty or longer than the context.
        """
        rows = self._rows(prompts)
        with self._forward():
            return scoring.last_logprobs(
                self.parts.base,
                self.parts.unembed,
                rows,
                self.vocab_size,
                batch_tokens=batch_tokens,
                place=self._place if self._edited else None,
                device=self.device,
            )

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str | Sequence[int]],
        *,
        per_token: bool = False,
        batch_tokens: int = 16384,
    ) -> Any:
        """Log-probability of each completion after its prompt, in nats: float32 [N] on the CPU.

        With `per_token` a list of float32 [len(completion)] instead. A text is tokenised apart from its
        prompt and nothing is added, so give ids to include an end-of-turn token. A prompt shared by many
        completions is run once.
        """
        if len(prompts) != len(completions):
            raise InputError(
                f"{len(prompts)} prompts but {len(completions)} completions",
                fix="give one completion per prompt",
            )
        rows = self._rows(prompts)
        said = encode_completions(self.tokenizer, completions)
        check_rows(
            [[*row, *reply[:-1]] for row, reply in zip(rows, said, strict=True)],
            context=self.context,
            vocab_size=self.vocab_size,
        )
        check_rows([reply[-1:] for reply in said], context=1, vocab_size=self.vocab_size)
        with self._forward():
            found = scoring.score_rows(
                self.parts.base,
                self.parts.unembed,
                rows,
                said,
                batch_tokens=batch_tokens,
                place=self._place,
                device=self.device,
                edited=self._edited,
            )
        return found if per_token else torch.tensor([float(part.double().sum()) for part in found])

    # -- inside ----------------------------------------------------------------------------------------------

    def require_self_test(self) -> None:
        """Raise UnknownArchitecture unless the self-test passes."""

    @property
    def _edited(self) -> bool:
        return False

    def _place(self, rows: Tensor, starts: Tensor, prompt_lengths: Tensor) -> None:
        return None

    @contextmanager
    def _forward(self, *, grad: bool = False) -> Iterator[None]:
        """Evaluation mode for the block, and no gradients unless `grad`."""
        with evaluating(self.model), torch.enable_grad() if grad else torch.inference_mode():
            yield

    def _rows(self, prompts: Sequence[Prompt], *, more: int = 0) -> list[list[int]]:
        rows = self.encode_all(prompts)
        check_rows(rows, context=self.context, vocab_size=self.vocab_size, more=more)
        return rows

    def _decode_all(self, rows: Sequence[list[int]], *, special: bool = False) -> list[str]:
        decode: Callable[..., list[str]] = need_tokenizer(self.tokenizer).batch_decode
        return decode(list(rows), skip_special_tokens=not special, clean_up_tokenization_spaces=False)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; the training flags of every module are restored after it."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _check_sampling(n: int, temperature: float, top_p: float, max_new_tokens: int) -> None:
    for name, value, right in (
        ("n", n, n >= 1),
        ("temperature", temperature, 0 <= temperature < float("inf")),
        ("top_p", top_p, 0 < top_p <= 1),
        ("max_new_tokens", max_new_tokens, max_new_tokens >= 1),
    ):
        if not right:
            raise InputError(f"{name}={value} is out of range", fix="see Subject.generate")
