"""Models behind the judge, through Inspect: opening, pricing, one call."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glasshouse.annotators._errors import AnnotatorUnavailable
from glasshouse.annotators.lm.jobs import YES_NO
from glasshouse.annotators.lm.store import Answer
from glasshouse.runtime import files
from glasshouse.runtime.errors import GlasshouseError
from glasshouse.runtime.text import clean_text, shorten

if TYPE_CHECKING:
    from inspect_ai.model import Model, ModelOutput, ModelUsage

FREE = frozenset(
    {"glasshouse", "hf", "mockllm", "none", "vllm", "sglang", "ollama", "llama-cpp-python", "nnterp"}
)
"""Providers that run on this machine: a call costs no money."""
WITHOUT_SCHEMA = frozenset({"glasshouse", "hf", "none"})
"""Providers that know no response schema: there it stands in the prompt alone."""
TOP = 20
_WITHOUT_EFFECT = {"max_connections", "max_retries", "timeout", "attempt_timeout", "batch", "cache"}
_KEYS = {
    "openai": "OPENAI_API_KEY",
    "anthropic": "ANTHROPIC_API_KEY",
    "google": "GOOGLE_API_KEY",
    "mistral": "MISTRAL_API_KEY",
    "together": "TOGETHER_API_KEY",
    "openrouter": "OPENROUTER_API_KEY",
}
_AROUND = " \t\n\r\"'`*.,:!()[]{}ĠĊ▁_"


@dataclass(frozen=True)
class Settings:
    """How a model is asked: what decides its answers, and how many questions are open at once."""

    temperature: float = 0.0
    max_tokens: int = 256
    seed: int = 0
    soft: bool = False
    max_connections: int = 10
    batch: bool = False
    model_args: Mapping[str, Any] = field(default_factory=dict)


def open_model(model: str | Model, settings: Settings) -> Model:
    """The model of a name. Raises AnnotatorUnavailable when key, package, provider or folder is missing."""
    if not isinstance(model, str):
        return model
    from inspect_ai._util.error import PrerequisiteError
    from inspect_ai.model import get_model

    provider = model.partition("/")[0]
    args = dict(settings.model_args)
    if provider == "hf" and settings.temperature == 0:
        args.setdefault("do_sample", False)  # temperature 0 alone is refused by its sampler
    try:
        return get_model(model, **args)
    except (PrerequisiteError, GlasshouseError, ValueError, ImportError, OSError) as error:
        told = shorten(_plain(error), 200)
        key = _KEYS.get(provider)
        fix = f"set {key}" if key and key in _plain(error) else "install or start what it names"
        raise AnnotatorUnavailable(
            f"the judge cannot be used ({told})",
            where=shorten(model),
            fix=f"{fix}, or pass another annotator, such as LexicalAnnotator()",
        ) from error


def fingerprint(model: Model) -> str:
    """What tells apart two local models of the same name: the hash of the weights, '' for an API."""
    subject = getattr(model.api, "subject", None)
    if subject is not None and hasattr(subject, "hash"):
        return str(subject.hash)
    folder = Path(str(model.model_args.get("model_path") or model.api.model_name))
    if not folder.is_dir():
        return ""
    held = [path for path in sorted(folder.iterdir()) if path.is_file()]
    return _contents(tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in held))


def own_settings(model: Model) -> dict[str, Any]:
    """What the model was opened with and answers by: its plain arguments and its own configuration."""
    plain = {k: v for k, v in model.model_args.items() if isinstance(v, str | int | float | bool)}
    config = model.config.model_dump(mode="json", exclude_none=True, exclude=_WITHOUT_EFFECT)
    return {"args": plain, "config": config, "base_url": str(getattr(model.api, "base_url", None) or "")}


@cache
def _contents(held: tuple[tuple[str, int, int], ...]) -> str:
    """Hash of the files; read once for as long as their sizes and times stay."""
    return files.sha256_json([(Path(path).name, files.sha256_file(path)) for path, _, _ in held])


def price(model: Model, tokens_in: int, tokens_out: int) -> float | None:
    """US dollars of a call, 0 on this machine, None where nobody knows the price."""
    if provider_of(model) in FREE:
        return 0.0
    from inspect_ai.model import get_model_info

    info = get_model_info(model)
    if info is None or info.cost is None:
        return None
    return float(info.cost.input * tokens_in + info.cost.output * tokens_out) / 1e6


def provider_of(model: Model) -> str:
    """The part of the model's name before the slash."""
    return str(model).partition("/")[0]


async def ask(
    model: Model, messages: Sequence[tuple[str, str]], schema: Mapping[str, Any] | None, settings: Settings
) -> Answer:
    """One call. Raises AnnotatorUnavailable when the provider fails."""
    from inspect_ai.model import ChatMessageAssistant, ChatMessageUser

    made = [
        ChatMessageUser(content=text) if role == "user" else ChatMessageAssistant(content=text)
        for role, text in messages
    ]
    started = time.monotonic()
    try:
        output = await model.generate(made, config=_config(model, schema, settings))
    except GlasshouseError:
        raise
    except Exception as error:  # any provider, any kind of failure
        raise AnnotatorUnavailable(
            f"the call failed ({shorten(_plain(error), 200)})",
            where=shorten(str(model)),
            fix="repeat the request: finished calls are on disk and cost nothing",
        ) from error
    return _answer(model, output, time.monotonic() - started)


def _config(model: Model, schema: Mapping[str, Any] | None, settings: Settings) -> Any:
    from inspect_ai.model import GenerateConfig, ResponseSchema
    from inspect_ai.util import JSONSchema

    provider = provider_of(model)
    wanted: dict[str, Any] = {"max_tokens": settings.max_tokens, "max_connections": settings.max_connections}
    if not (provider == "hf" and settings.temperature == 0):
        wanted["temperature"] = settings.temperature
    wanted["seed"] = settings.seed
    if settings.batch:
        wanted["batch"] = True
    if settings.soft:
        wanted |= {"logprobs": True, "top_logprobs": TOP}
    if schema is not None and provider not in WITHOUT_SCHEMA:
        shape = JSONSchema.model_validate(schema)
        wanted["response_schema"] = ResponseSchema(name="answers", json_schema=shape)
    return GenerateConfig(**wanted)


def _answer(model: Model, output: ModelOutput, seconds: float) -> Answer:
    usage = output.usage
    choice = output.choices[0] if output.choices else None
    yes, mass = (
        yes_share(choice.logprobs) if choice is not None and choice.logprobs is not None else (None, None)
    )
    read = (usage.input_tokens_cache_read or 0) if usage else 0
    write = (usage.input_tokens_cache_write or 0) if usage else 0
    return Answer(
        text=output.completion,
        refused=output.stop_reason == "content_filter",
        yes=yes,
        mass=mass,
        tokens_in=usage.input_tokens + read + write if usage else 0,
        tokens_out=usage.output_tokens if usage else 0,
        tokens_cached=read,
        tokens_reasoning=(usage.reasoning_tokens or 0) if usage else 0,
        usd=_paid(model, usage),
        wall_seconds=seconds,
    )


def _paid(model: Model, usage: ModelUsage | None) -> float | None:
    if usage is None:
        return None
    if usage.total_cost is not None:
        return float(usage.total_cost)
    return price(model, usage.input_tokens, usage.output_tokens)


def yes_share(logprobs: Any) -> tuple[float | None, float | None]:
    """p(yes) / (p(yes) + p(no)) at the answer token and p(yes) + p(no), all spellings of both added up.

    The answer token is the first that is a yes or a no, else the first. None where neither is among the
    alternatives that were given: an option outside the top is unknown, not impossible.
    """
    content = logprobs.content
    spoken = [i for i, token in enumerate(content) if _bare(token.token) in YES_NO]
    if not content:
        return None, None
    total = dict.fromkeys(YES_NO, 0.0)
    for option in content[spoken[0] if spoken else 0].top_logprobs or ():
        if _bare(option.token) in total:
            total[_bare(option.token)] += math.exp(option.logprob)
    mass = total["yes"] + total["no"]
    return (total["yes"] / mass, mass) if mass > 0 else (None, None)


def _bare(token: str) -> str:
    return token.strip(_AROUND).casefold()


def _plain(error: BaseException) -> str:
    return clean_text(str(getattr(error, "message", error))).replace("\n", " ") or type(error).__name__
