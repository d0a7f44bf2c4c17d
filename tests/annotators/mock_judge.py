"""A programmatic model behind Inspect: plumbing only, no number about judges rests on it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from inspect_ai.model import ChatCompletionChoice, ChatMessageAssistant, ModelOutput, ModelUsage, get_model

from glasshouse.annotators import LMAnnotator


class Killed(BaseException):
    """Stands for the end of the process: nothing of ours may catch it."""


class MockJudge:
    """Answers with `reply(prompt, attempt)`; remembers every call and what it reported as usage."""

    def __init__(
        self, reply: Callable[[str, int], str | ModelOutput], *, dies_after: int | None = None
    ) -> None:
        self.reply, self.dies_after = reply, dies_after
        self.prompts: list[str] = []
        self.configs: list[Any] = []
        self.open = self.most_open = 0
        self.tokens_in = self.tokens_out = 0

    async def __call__(self, messages, tools, tool_choice, config) -> ModelOutput:
        import anyio

        if self.dies_after is not None and len(self.prompts) >= self.dies_after:
            raise Killed
        self.prompts.append(messages[0].text if len(messages) == 1 else messages[-1].text)
        self.configs.append(config)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        await anyio.lowlevel.checkpoint()
        self.open -= 1
        said = self.reply(messages[0].text, (len(messages) - 1) // 2)
        output = said if isinstance(said, ModelOutput) else spoken(said)
        self.tokens_in += output.usage.input_tokens
        self.tokens_out += output.usage.output_tokens
        return output

    def annotator(self, folder, **options: Any) -> LMAnnotator:
        return LMAnnotator(get_model("mockllm/model", custom_outputs=self), folder=folder, **options)


def spoken(text: str, *, stop_reason: str = "stop", logprobs: Any = None) -> ModelOutput:
    message = ChatMessageAssistant(content=text)
    choice = ChatCompletionChoice(message=message, stop_reason=stop_reason, logprobs=logprobs)
    usage = ModelUsage(input_tokens=7 + len(text), output_tokens=3, total_tokens=10 + len(text))
    return ModelOutput(model="mockllm/model", choices=[choice], usage=usage)


def shown_text(prompt: str) -> str:
    """What stands between the fences of a prompt."""
    mark = re.search(r"\[data [0-9a-f]{12}\]", prompt)[0]
    return prompt.split(f"\n{mark}\n")[1]


def questions(prompt: str) -> list[str]:
    """The numbered statements of a prompt."""
    return re.findall(r"^\d+\. (.+)$", prompt.split("Statements:")[-1], re.MULTILINE)


def contains(prompt: str, attempt: int) -> str:
    """Says yes to 'says WORD' where the text holds the word."""
    words = shown_text(prompt).split()
    return json.dumps({"answers": ["yes" if q.split()[-1] in words else "no" for q in questions(prompt)]})
