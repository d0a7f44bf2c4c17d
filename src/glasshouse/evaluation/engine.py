"""One opened model in a process, whoever asks for it, and its queues."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from anyio.lowlevel import RunVar

from glasshouse.evaluation.batching import Lane
from glasshouse.evaluation.decoding import generate_all
from glasshouse.evaluation.scoring import score_pairs
from glasshouse.runtime.devices import torch_threads
from glasshouse.subjects import Subject, as_subject

SMALL = 20_000_000
"""Fewer parameters are computed with on one thread; see `runtime.devices.torch_threads`."""

_OPEN: WeakValueDictionary[tuple[Any, ...], Engine] = WeakValueDictionary()
_OPENING = threading.Lock()


def open_engine(source: str, *, device: str, dtype: str, subject: Subject | None = None) -> Engine:
    """The engine of a model, opened once however many names and roles it has in a process.

    Raises what `as_subject` raises.
    """
    if subject is not None:
        return Engine(subject)
    key = (source, device, dtype, _fingerprint(source))
    with _OPENING:
        engine = _OPEN.get(key)
        if engine is None:
            engine = _OPEN[key] = Engine(as_subject(source, device=device, dtype=dtype))
    return engine


class Engine:
    """A subject that works in batches: requests of all callers in a loop run together."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        size = sum(parameter.numel() for parameter in subject.model.parameters())
        self._threads = 1 if size < SMALL and subject.device == "cpu" else None
        self._lock = threading.Lock()
        self._lanes: RunVar[dict[int, Lane]] = RunVar(f"glasshouse-{id(self)}")
        self.token_text = lru_cache(maxsize=None)(partial(token_text, subject.tokenizer))

    async def ask(self, kind: str, jobs: Sequence[Any], batch_tokens: int) -> Sequence[Any]:
        """The results of jobs (`generate` or `score`) in order; waits its turn."""
        lanes = self._lanes.get(None)
        if lanes is None:  # one set per event loop
            lanes = {}
            self._lanes.set(lanes)
        if batch_tokens not in lanes:
            lanes[batch_tokens] = Lane(partial(self._work, batch_tokens))
        return await lanes[batch_tokens].ask(kind, jobs)

    def _work(self, batch_tokens: int, kind: str, jobs: Sequence[Any]) -> Sequence[Any]:
        with self._lock, torch_threads(self._threads):
            if kind == "score":
                return score_pairs(self.subject, jobs, batch_tokens=batch_tokens)
            return generate_all(self.subject, jobs, batch_tokens=batch_tokens)


def token_text(tokenizer: Any, token: int) -> str:
    """What one token adds to a text, the space before a word included; special tokens by name."""
    raw = str(tokenizer.convert_ids_to_tokens(token))
    if token in tokenizer.all_special_ids:
        return raw
    if raw.startswith("▁"):  # decoders of these tokenizers drop the space at the start of a text
        return " " + raw[1:].replace("▁", " ")
    text: str = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    return " " + text if raw.startswith("Ġ") and not text.startswith(" ") else text


def _fingerprint(source: str) -> tuple[Any, ...]:
    """Changes when a folder is written again, so that a retrained model is opened anew."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return ()
    stats = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
