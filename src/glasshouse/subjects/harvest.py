"""Activations of a data set, streamed to disk in shards that appear whole or not at all.

A killed harvest therefore goes on at the first shard that is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from glasshouse.corpora.rows import length_buckets
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError, StaleError
from glasshouse.subjects.prompts import Prompt
from glasshouse.subjects.sites import Site

if TYPE_CHECKING:
    from glasshouse.subjects.subject import Subject

_LENGTHS = "lengths"  # no site's name
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Collected:
    """Stored activations, rows in the order of the prompts.

    `load(site)` is [N, n, ...] for n positions per row. A harvest of all tokens has rows of different
    lengths: there it is [tokens, ...], row after row, and `rows(site)` cuts it up.
    """

    folder: Path
    sites: tuple[Site, ...]
    shards: tuple[Path, ...]
    all_tokens: bool = False

    def load(self, site: str | Site) -> Tensor:
        """One site of all rows. Raises InputError for a site that was not collected."""
        return torch.cat(list(self.stream(site)))

    def stream(self, site: str | Site) -> Iterator[Tensor]:
        """One site, shard by shard."""
        wanted = Site.parse(site)
        if wanted not in self.sites:
            listed = ", ".join(map(str, self.sites))
            raise InputError(
                f"{wanted} was not collected", where=str(self.folder), fix=f"choose from {listed}"
            )
        return self._tensors(str(wanted))

    def rows(self, site: str | Site) -> Iterator[Tensor]:
        """One site, row by row: [positions of that row, ...]."""
        if not self.all_tokens:
            for part in self.stream(site):
                yield from part
            return
        for part, lengths in zip(self.stream(site), self._tensors(_LENGTHS), strict=True):
            yield from part.split(lengths.tolist())

    def lengths(self) -> Tensor:
        """How many tokens each row has: int64 [N]. Raises InputError unless all tokens were collected."""
        if not self.all_tokens:
            raise InputError(
                "only some positions were collected",
                where=str(self.folder),
                fix="collect with positions=None",
            )
        return torch.cat(list(self._tensors(_LENGTHS)))

    def _tensors(self, name: str) -> Iterator[Tensor]:
        from safetensors import safe_open

        for shard in self.shards:
            with safe_open(shard, framework="pt") as stored:
                yield stored.get_tensor(name)


def collect(
    subject: Subject,
    prompts: Sequence[Prompt],
    sites: Sequence[str | Site],
    folder: Path | str,
    *,
    positions: Sequence[int] | None = (-1,),
    dtype: str = "native",
    rows_per_shard: int = 512,
    batch_tokens: int = 8192,
) -> Collected:
    """Read `sites` at `positions` of every prompt into `folder`; shards that exist are not computed again.

    Positions count unpadded tokens, from the end when negative; None stands for every token. `dtype` is
    native, fp32, bf16 or fp16. Raises StaleError when the folder holds a harvest of another model, of other
    prompts or with other settings.
    """
    if dtype != "native" and dtype not in _DTYPES:
        raise InputError(f"{dtype!r} is not a number format", fix="use native, " + ", ".join(_DTYPES))
    if not prompts:
        raise InputError("there are no prompts to read", fix="give at least one")
    rows, read, folder = subject.encode_all(prompts), [Site.parse(site) for site in sites], Path(folder)
    for site in read:
        if site.kind == "pattern":
            raise InputError(
                f"the pattern {site} has no rows of tokens", fix="use attention(..., reduce=...) for patterns"
            )
    settings = {
        "subject": subject.hash,
        "rows": files.sha256_json(rows),
        "sites": [str(site) for site in read],
        "positions": None if positions is None else list(positions),
        "dtype": dtype,
        "rows_per_shard": rows_per_shard,
    }
    _claim(folder, settings)
    starts = range(0, len(rows), rows_per_shard)
    shards = [folder / f"shard-{number:05d}.safetensors" for number in range(len(starts))]
    for start, shard in zip(starts, shards, strict=True):
        if not shard.exists():
            chunk = rows[start : start + rows_per_shard]
            _write(shard, _read(subject, chunk, read, positions, batch_tokens), _DTYPES.get(dtype))
    return Collected(folder, tuple(read), tuple(shards), positions is None)


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    manifest = folder / "collect.json"
    if not manifest.exists():
        files.write_json(manifest, settings)
        return
    stored = files.read_json(manifest)
    changed = sorted(key for key in settings if stored.get(key) != settings[key])
    if changed:
        raise StaleError(
            f"the folder holds activations with other {', '.join(changed)}",
            where=str(folder),
            fix="give an empty folder",
        )


def _read(
    subject: Subject,
    rows: list[list[int]],
    sites: list[Site],
    positions: Sequence[int] | None,
    batch_tokens: int,
) -> dict[str, Tensor]:
    """Site name to [rows, n, ...] (all tokens: [tokens, ...]), in the order of `rows`, however batched."""
    parts: dict[str, list[Tensor]] = {str(site): [torch.empty(0)] * len(rows) for site in sites}
    at = None if positions is None else list(positions)
    for bucket in length_buckets([len(row) for row in rows], batch_tokens):
        run = subject.run([rows[i] for i in bucket], read=sites, positions=at, logits=False)
        for site in sites:
            for i, one in zip(bucket, run.acts[site].cpu(), strict=True):
                # Rows are padded on the right.
                parts[str(site)][i] = one[: len(rows[i])].clone() if at is None else one
    if at is not None:
        return {name: torch.stack(many) for name, many in parts.items()}
    joined = {name: torch.cat(many) for name, many in parts.items()}
    return {**joined, _LENGTHS: torch.tensor([len(row) for row in rows])}


def _write(shard: Path, arrays: dict[str, Tensor], dtype: torch.dtype | None) -> None:
    from safetensors.torch import save

    stored = {
        name: array.to(dtype) if dtype is not None and array.is_floating_point() else array
        for name, array in arrays.items()
    }
    files.write_bytes(shard, save(stored))
