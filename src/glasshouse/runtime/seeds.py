"""Seeds as streams: every draw has a name, so that results do not depend on batch size, order or workers."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream called `names` under `seed`; different names give independent streams.

    >>> derive(0, "row", 3) == derive(0, "row", 3), derive(0, "row", 3) == derive(0, "row", 4)
    (True, False)
    """
    text = "\x1f".join([str(int(seed)), *(f"{type(n).__name__}:{n}" for n in names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def rng(seed: int, *names: str | int) -> np.random.Generator:
    """A numpy generator on the stream `names`."""
    import numpy as np

    return np.random.default_rng(derive(seed, *names))


def torch_generator(seed: int, *names: str | int, device: str = "cpu") -> torch.Generator:
    """A torch generator on the stream `names`."""
    import torch

    return torch.Generator(device=device).manual_seed(derive(seed, *names))


@contextmanager
def seeded(seed: int, *names: str | int) -> Iterator[None]:
    """Set the global generators of random, numpy and torch inside the block and restore them after it."""
    import numpy as np
    import torch

    stream = derive(seed, *names)
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(stream)
    np.random.seed(stream % 2**32)
    torch.manual_seed(stream)
    try:
        yield
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.set_rng_state(state[2])
