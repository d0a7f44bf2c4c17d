"""The Inspect provider: local models that generate without waiting and score given text.

Model strings are `glasshouse/./folder`, `glasshouse//absolute/folder` and `glasshouse/organism://resident`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    Logprob,
    Logprobs,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    TopLogprob,
)
from inspect_ai.model._cache import epoch as epoch_of_sample
from inspect_ai.tool import ToolChoice, ToolInfo

from glasshouse.corpora.rows import Turn
from glasshouse.corpora.tokens import plain_ids
from glasshouse.evaluation.decoding import Reply, Request
from glasshouse.evaluation.engine import Engine, open_engine
from glasshouse.evaluation.scoring import TokenLogprobs
from glasshouse.runtime.errors import AccessError, InputError
from glasshouse.runtime.seeds import derive
from glasshouse.subjects import Subject
from glasshouse.subjects.batches import check_rows

UNSUPPORTED = (
    "best_of", "frequency_penalty", "presence_penalty", "logit_bias", "prompt_logprobs", "response_schema",
    "extra_body", "modalities",
)  # fmt: skip
"""Settings that would change the answer and that this provider does not have; they are refused."""

DEFAULT_MAX_TOKENS = 2048
CONNECTIONS = 64
"""Requests Inspect may have open at once; those that wait run in one batch."""


class GlasshouseAPI(ModelAPI):
    """A local model behind Inspect. `subject` is the opened model; `score` gives what no API gives.

    Without a temperature, or at 0, decoding is greedy. A `seed` decides the draws of a request together with
    its prompt and its epoch; without one the seed is drawn and written to the output's metadata. Settings
    this provider does not know, and tools, are refused in one sentence.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 (Inspect's own signature)
        *,
        device: str = "auto",
        dtype: str = "auto",
        batch_tokens: int = 16384,
        max_length: int | None = None,
        use_chat_template: bool = True,
        subject: Subject | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__(model_name=model_name, base_url=base_url, api_key=api_key, config=config)
        if unknown:
            known = "device, dtype, batch_tokens, max_length, use_chat_template"
            raise InputError(f"glasshouse/ has no model argument {next(iter(unknown))!r}", fix=f"use {known}")
        if batch_tokens < 1:
            raise InputError(f"batch_tokens={batch_tokens} is out of range", fix="give a positive number")
        self._engine: Engine = open_engine(model_name, device=device, dtype=dtype, subject=subject)
        self._batch_tokens = batch_tokens
        self._template = use_chat_template
        self._context = min(max_length or self.subject.context, self.subject.context)

    @property
    def subject(self) -> Subject:
        """The opened model."""
        return self._engine.subject

    def max_tokens(self) -> int:
        """Tokens to generate where a task sets no limit."""
        return DEFAULT_MAX_TOKENS

    def max_connections(self) -> int:
        """Requests open at once."""
        return CONNECTIONS

    def connection_key(self) -> str:
        """One pool of connections per model."""
        return self.model_name

    async def count_text_tokens(self, text: str) -> int:
        """Tokens of a text in the model's own tokenizer."""
        return len(await self.tokenize(text))

    async def tokenize(self, text: str) -> list[int]:
        """Token ids of a plain text."""
        return plain_ids(self.subject.tokenizer, text)

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        """The model's reply. Raises AccessError for tools, InputError for settings this provider lacks."""
        if tools:
            raise AccessError(
                f"a glasshouse/ model cannot call tools ({tools[0].name} first)",
                fix="run tasks with tools on a model trained for them, through hf/ or an API provider",
            )
        _refuse_unsupported(config)
        ids = self._encode(turns_of(input))
        if len(ids) > self._context:
            return self._too_long(len(ids))
        started = time.monotonic()
        seed = secrets.randbits(48) if config.seed is None else config.seed
        requests = self._requests(ids, config, seed)
        replies = await self._engine.ask("generate", requests, self._batch_tokens)
        return self._output(replies, len(ids), seed, time.monotonic() - started)

    async def score(
        self, prompts: Sequence[str | Sequence[ChatMessage]], continuations: Sequence[str]
    ) -> list[TokenLogprobs]:
        """Log-probability of every token of each continuation after its prompt, in nats, one result per pair.

        A text prompt is one user turn for a chat model and plain text for a base model, as in
        `Subject.score`. Pairs of concurrent callers run together, and a prompt shared by several
        continuations is read once; a result depends on its own pair alone.

        Raises InputError naming the pair that is empty, too long or whose boundary is merged
        (BoundaryMergeError).
        """
        given = [prompt if isinstance(prompt, str) else turns_of(prompt) for prompt in prompts]
        pairs = self.subject.encode_pairs(given, continuations, template=self._template)
        rows = [[*before, *after[:-1]] for before, after in pairs]
        check_rows(rows, context=self._context, vocab_size=self.subject.vocab_size)
        found = await self._engine.ask("score", pairs, self._batch_tokens)
        return [
            TokenLogprobs(tuple(after), values, "logprob")
            for (_, after), values in zip(pairs, found, strict=True)
        ]

    def _encode(self, turns: list[Turn]) -> list[int]:
        if self._template or not self.subject.is_chat:
            return self.subject.encode(turns)
        if len(turns) != 1:
            raise InputError(
                f"{len(turns)} messages cannot be sent without the chat template",
                fix="send one user message, or leave use_chat_template at true",
            )
        return plain_ids(self.subject.tokenizer, turns[0].text)

    def _requests(self, ids: Sequence[int], config: GenerateConfig, seed: int) -> list[Request]:
        # Requests that share a seed must not share their draws: two prompts, or two epochs of one, would
        # then err together.
        draw = derive(seed, "request", epoch_of_sample.get(1), ",".join(map(str, ids)))
        top = (config.top_logprobs or 0) if config.logprobs else None
        return [
            Request(
                tuple(ids),
                max_new_tokens=min(config.max_tokens or DEFAULT_MAX_TOKENS, DEFAULT_MAX_TOKENS * 16),
                max_length=self._context,
                temperature=config.temperature or 0.0,
                top_p=1.0 if config.top_p is None else config.top_p,
                top_k=config.top_k,
                stop_ids=self.subject.stop_ids,
                stop=tuple(config.stop_seqs or ()),
                seed=derive(draw, "choice", choice),
                top_logprobs=top,
            )
            for choice in range(config.num_choices or 1)
        ]

    def _output(self, replies: Sequence[Reply], read: int, seed: int, seconds: float) -> ModelOutput:
        written = sum(len(reply.ids) for reply in replies)
        return ModelOutput(
            model=self.model_name,
            choices=[self._choice(reply) for reply in replies],
            usage=ModelUsage(input_tokens=read, output_tokens=written, total_tokens=read + written),
            time=seconds,
            metadata={
                "seed": seed,
                "token_ids": [reply.ids for reply in replies],
                **(
                    {"top_token_ids": [[[t for t, _ in at] for at in r.top] for r in replies]}
                    if replies[0].top
                    else {}
                ),
            },
        )

    def _choice(self, reply: Reply) -> ChatCompletionChoice:
        message = ChatMessageAssistant(content=reply.text, model=self.model_name, source="generate")
        return ChatCompletionChoice(
            message=message, stop_reason=reply.reason or "unknown", logprobs=self._logprobs(reply)
        )

    def _logprobs(self, reply: Reply) -> Logprobs | None:
        if not reply.logprobs:
            return None
        word = self._engine.token_text
        content = []
        for at, (token, logprob) in enumerate(zip(reply.ids, reply.logprobs, strict=True)):
            likeliest = reply.top[at] if reply.top else None
            top = likeliest and [
                TopLogprob(token=word(one), logprob=value, bytes=list(word(one).encode()))
                for one, value in likeliest
            ]
            text = word(token)
            content.append(Logprob(token=text, logprob=logprob, bytes=list(text.encode()), top_logprobs=top))
        return Logprobs(content=content)

    def _too_long(self, length: int) -> ModelOutput:
        """Inspect's way to say that a conversation outgrew its model: no answer, and the reason."""
        why = f"the prompt has {length} tokens, but the model reads {self._context}"
        output = ModelOutput.from_content(self.model_name, "", "model_length", error=why)
        output.usage = ModelUsage(input_tokens=0, output_tokens=0, total_tokens=0)
        return output


def turns_of(messages: Sequence[ChatMessage]) -> list[Turn]:
    """Inspect's messages as turns. Raises AccessError for images, audio and tool calls."""
    turns = []
    for message in messages:
        parts = [] if isinstance(message.content, str) else message.content
        other = [part.type for part in parts if part.type not in ("text", "reasoning")]
        if other or message.role == "tool" or getattr(message, "tool_calls", None):
            kind = other[0] if other else "tool"
            raise AccessError(f"a glasshouse/ model reads text only, not {kind} messages", fix="send text")
        turns.append(Turn(message.role, message.text))
    return turns


def _refuse_unsupported(config: GenerateConfig) -> None:
    for name in UNSUPPORTED:
        value = getattr(config, name)
        if value not in (None, 0.0, {}, []):
            raise InputError(f"glasshouse/ models do not support {name}", fix="leave it unset")
    for name, right in (
        ("temperature", lambda value: 0 <= value < float("inf")),
        ("top_p", lambda value: 0 < value <= 1),
        ("top_k", lambda value: value >= 1),
        ("num_choices", lambda value: value >= 1),
        ("max_tokens", lambda value: value >= 1),
    ):
        value = getattr(config, name)
        if value is not None and not right(value):
            raise InputError(f"{name}={value} is out of range", fix="see inspect eval --help")
    if config.stop_seqs and not all(config.stop_seqs):
        raise InputError("a stop sequence is empty", fix="leave it out")
