"""Models one can only talk to, through any of Inspect's providers: `as_subject("inspect:openai/gpt-4o")`.

Inspect sends the requests: it knows the providers, limits concurrency, and retries. Its cache is off unless
asked for, so that every answer is the model's own.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

from glasshouse.corpora.rows import Turn
from glasshouse.runtime import files
from glasshouse.runtime.background import in_background
from glasshouse.runtime.errors import AccessError, InputError, MissingDependency
from glasshouse.runtime.seeds import derive
from glasshouse.subjects.generation import Completion

PREFIX = "inspect:"
ASSUMED_CONTEXT = 8192
"""Tokens an API model is taken to read; providers do not say, and refuse longer texts themselves."""

MAX_RETRIES = 5
"""Tries of one request after the first; Inspect's own default is to go on for ever."""

T = TypeVar("T")


@dataclass
class ApiUsage:
    """What was asked of a provider so far."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


class ApiSubject:
    """A model behind an API; get one from `as_subject("inspect:PROVIDER/MODEL")`.

    It gives text, and with `top_logprobs=k` the k likeliest tokens of a reply's first position, where the
    provider has them. Whatever looks inside a model (`run`, `logprobs`, `patched`, ...) raises AccessError.
    `usage` counts calls and tokens. `model_args` go to the provider.
    """

    is_chat = True
    tokenizer = None
    stop_ids: tuple[int, ...] = ()
    context = ASSUMED_CONTEXT
    architecture = "unknown, behind an API"
    device = "api"
    dtype = "unknown"

    def __init__(
        self,
        model: str,
        *,
        top_logprobs: int | None = None,
        cache: bool = False,
        max_connections: int | None = None,
        max_retries: int = MAX_RETRIES,
        base_url: str | None = None,
        **model_args: Any,
    ) -> None:
        if top_logprobs is not None and not 1 <= top_logprobs <= 20:
            raise InputError(f"top_logprobs={top_logprobs} is out of range", fix="give 1 to 20")
        self.model = model.removeprefix(PREFIX)
        self.name = PREFIX + self.model
        self.top_logprobs = top_logprobs
        self.meta: dict[str, Any] = {"provider": self.model.partition("/")[0]}
        self.usage = ApiUsage()
        self._settings: dict[str, Any] = {
            "cache": cache,
            "max_connections": max_connections,
            "max_retries": max_retries,
        }
        self._base_url, self._model_args = base_url, model_args
        self._api = _open(self.model, base_url, model_args)

    def __repr__(self) -> str:
        return f"ApiSubject({self.name!r}, {', '.join(sorted(self.access))})"

    @property
    def access(self) -> frozenset[str]:
        """What may be seen: text, and log-probabilities only when asked for with `top_logprobs`."""
        return frozenset({"text"} if self.top_logprobs is None else {"text", "logprobs"})

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the model string and its configuration; what the provider runs is not ours to see."""
        asked = {"model": self.model, "base_url": self._base_url, "top_logprobs": self.top_logprobs}
        return files.sha256_json({**asked, "args": {k: str(v) for k, v in self._model_args.items()}})

    def generate(
        self,
        prompts: Sequence[str | Sequence[Turn]],
        *,
        n: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_new_tokens: int = 32,
        stop_ids: Sequence[int] | None = None,
        patches: Sequence[Any] = (),
        seed: int = 0,
        batch_tokens: int = 0,
    ) -> list[list[Completion]]:
        """The n completions of each prompt, as in `Subject.generate`; `batch_tokens` means nothing here.

        `ids` are empty and `logprob` is NaN: an API does not say. Providers may ignore `seed`. Raises
        AccessError for token ids, stop ids and patches, InputError for values out of range.
        """
        if patches:
            self._refuse("patches", "activations")
        if stop_ids is not None:
            raise AccessError("an API has no token ids to stop at", where=self.name, fix="leave stop_ids out")
        if n < 1 or max_new_tokens < 1 or temperature < 0 or not 0 < top_p <= 1:
            raise InputError("a sampling setting is out of range", fix="see Subject.generate")
        messages = [self._messages(prompt, index) for index, prompt in enumerate(prompts)]
        how = {"max_tokens": max_new_tokens, "temperature": temperature}
        if top_p < 1:
            how["top_p"] = top_p
        asked = [
            (message, how | _seed(temperature, seed, row, sample))
            for row, message in enumerate(messages)
            for sample in range(n)
        ]
        outputs = [self._completion(output) for output in self._ask_all(asked)]
        return [outputs[at : at + n] for at in range(0, len(outputs), n)]

    def score(
        self, prompts: Sequence[str | Sequence[Turn]], completions: Sequence[str], **options: Any
    ) -> Tensor:
        """Log-probability of completions of one token, in nats, float32 [N], from the likeliest first tokens.

        Completions of any length where the provider can score (`inspect:glasshouse/...`). Raises AccessError
        without `top_logprobs`, where a completion is not among the likeliest (its value is only known to be
        lower), or where the provider sends none.
        """
        if self.top_logprobs is None:
            raise AccessError(
                "log-probabilities were not asked for", where=self.name, fix="open it with top_logprobs=20"
            )
        if options:
            self._refuse(next(iter(options)), "activations")
        if len(prompts) != len(completions):
            raise InputError(f"{len(prompts)} prompts but {len(completions)} completions")
        messages = [self._messages(prompt, index) for index, prompt in enumerate(prompts)]
        exact = getattr(self._api.api, "score", None)
        if exact is not None:
            return torch.tensor([one.total for one in in_background(exact(messages, completions))])
        how = {"max_tokens": 1, "logprobs": True, "top_logprobs": self.top_logprobs, "temperature": 0.0}
        tops = [self._likeliest(output) for output in self._ask_all([(one, how) for one in messages])]
        return torch.tensor([self._find(top, said) for top, said in zip(tops, completions, strict=True)])

    def close(self) -> None:
        """Close the provider's connections; the subject cannot be asked any more."""
        in_background(self._api.api.aclose())

    def _likeliest(self, output: Any) -> dict[str, float]:
        logprobs = output.choices[0].logprobs if output.choices else None
        if logprobs is None or not logprobs.content:
            raise AccessError("the provider sent no log-probabilities", where=self.name, fix="use text only")
        first = logprobs.content[0]
        return {one.token.strip(): one.logprob for one in reversed(first.top_logprobs or [first])}

    def _find(self, top: dict[str, float], said: str) -> float:
        if said.strip() not in top:
            raise AccessError(
                f"{said!r} is not among the {self.top_logprobs} likeliest tokens: only known is that it lies"
                f" below {min(top.values()):.2f} nats",
                where=self.name,
                fix="ask for one of the likely tokens, or use a model that can score",
            )
        return top[said.strip()]

    def _messages(self, prompt: Any, index: int) -> list[Any]:
        from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser

        kinds = {"user": ChatMessageUser, "assistant": ChatMessageAssistant, "system": ChatMessageSystem}
        turns = [Turn("user", prompt)] if isinstance(prompt, str) else list(prompt)
        if not turns or not any(getattr(turn, "text", "x") for turn in turns):
            raise InputError("the prompt is empty", where=f"row {index}", fix="drop it or give it text")
        if not all(isinstance(turn, Turn) for turn in turns):
            raise AccessError("an API reads text, not token ids", where=self.name, fix="give texts or turns")
        return [kinds[turn.role](content=turn.text) for turn in turns]

    def _ask_all(self, asked: Sequence[tuple[list[Any], dict[str, Any]]]) -> list[Any]:
        from inspect_ai.model import GenerateConfig

        async def all_of_them() -> list[Any]:
            calls = [
                self._api.generate(messages, config=GenerateConfig(**{**self._settings, **how}))
                for messages, how in asked
            ]
            return await _gather(calls)

        try:
            outputs = in_background(all_of_them())
        except AccessError:
            raise
        except Exception as error:
            raise AccessError(
                f"the provider did not answer: {_sentence(error)}",
                where=self.name,
                fix="check the model's name, the key and the network",
            ) from error
        for output in outputs:
            used = output.usage
            self.usage.calls += 1
            self.usage.input_tokens += used.input_tokens if used else 0
            self.usage.output_tokens += used.output_tokens if used else 0
        return outputs

    def _completion(self, output: Any) -> Completion:
        if not output.choices:
            raise AccessError(
                f"the provider sent no reply: {output.error or 'no reason given'}", where=self.name
            )
        return Completion(output.completion, (), math.nan, output.stop_reason == "stop")

    def _refuse(self, what: str, need: str) -> NoReturn:
        given = ", ".join(sorted(self.access))
        raise AccessError(
            f"{what} needs {need}, and this model gives {given} only",
            where=self.name,
            fix="open a local checkpoint of it",
        )

    def __getattr__(self, name: str) -> Any:
        from glasshouse.subjects.subject import Subject

        if name.startswith("_") or not hasattr(Subject, name):
            raise AttributeError(f"ApiSubject has no attribute {name!r}")
        self._refuse(name, "logprobs of all tokens" if name == "logprobs" else "the model itself")


def _seed(temperature: float, seed: int, row: int, sample: int) -> dict[str, int]:
    """A seed of its own for every draw; greedy requests carry none."""
    return {"seed": derive(seed, "api", row, sample) % 2**31} if temperature > 0 else {}


def _open(model: str, base_url: str | None, model_args: dict[str, Any]) -> Any:
    try:
        from inspect_ai.model import get_model

        return get_model(model, base_url=base_url, memoize=False, **model_args)
    except Exception as error:  # providers raise errors of their own packages
        said = _sentence(error)
        install, key = re.search(r"pip install (.+)", said), re.search(r"No (.+?) defined", said)
        if install:
            raise MissingDependency(
                f"the provider of {model!r} needs a package", fix=f"pip install {install[1]}"
            ) from error
        if key:
            raise InputError(
                f"the provider of {model!r} needs a key", fix=f"set {key[1]} in the environment"
            ) from error
        raise InputError(
            f"cannot open {model!r} through Inspect: {said}",
            fix="name it as Inspect does, for instance inspect:openai/gpt-4o",
        ) from error


def _sentence(error: BaseException) -> str:
    """The innermost error as one line, without Inspect's colours."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    text = str(getattr(error, "message", "") or error) or type(error).__name__
    return re.sub(r"\[/?[a-z ]+\]", "", " ".join(text.split())).removeprefix("ERROR: ")[:300]


async def _gather(calls: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    """All results in order; the first failure cancels the others."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(call) for call in calls]
    return [task.result() for task in tasks]
