"""What an opened model is: its parts, its sizes, its identity, and how text becomes tokens for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import nn

from glasshouse.corpora.rows import Turn
from glasshouse.subjects.architectures import locate, unwrap
from glasshouse.subjects.batches import check_rows
from glasshouse.subjects.boundary import encode_pairs
from glasshouse.subjects.hashing import check_finite, model_hash
from glasshouse.subjects.prompts import Prompt, encode_prompts, need_tokenizer

LOCAL_ACCESS = frozenset({"text", "logprobs", "activations", "gradients"})


class Opened:
    """A model, its tokenizer and the facts about them; `Subject` adds what can be done with it."""

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

    def encode(self, prompt: str | Sequence[Turn]) -> list[int]:
        """The token ids of one prompt."""
        return self.encode_all([prompt])[0]

    def encode_all(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """The token ids of many prompts, tokenised together. Raises InputError naming an empty one."""
        return encode_prompts(self.tokenizer, prompts, is_chat=self.is_chat)

    def encode_pairs(
        self, prompts: Sequence[Prompt], completions: Sequence[str | Sequence[int]], *, template: bool = True
    ) -> list[tuple[list[int], list[int]]]:
        """Token ids of each prompt and of its completion, as the model meets them; see `subjects.boundary`.

        Without `template` a chat model reads a text prompt as plain text.
        """
        return encode_pairs(self.tokenizer, prompts, completions, is_chat=template and self.is_chat)

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of token ids; special tokens are left out unless `special`."""
        return self._decode_all([list(ids)], special=special)[0]

    def _rows(self, prompts: Sequence[Prompt], *, more: int = 0) -> list[list[int]]:
        rows = self.encode_all(prompts)
        check_rows(rows, context=self.context, vocab_size=self.vocab_size, more=more)
        return rows

    def _decode_all(self, rows: Sequence[list[int]], *, special: bool = False) -> list[str]:
        decode: Callable[..., list[str]] = need_tokenizer(self.tokenizer).batch_decode
        return decode(list(rows), skip_special_tokens=not special, clean_up_tokenization_spaces=False)
