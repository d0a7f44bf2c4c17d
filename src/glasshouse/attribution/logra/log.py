"""`SketchLog`: the sketches of all rows, in memory or as shards on disk, streamed and never all loaded.

On disk: `log.json` (layout, dtype, rows and bytes of every shard), `sketches/shard-00000.npy` (a line a row
or token), `scales.npy` (the power of two of every line) and `index.parquet` (id, shard, offset, lines,
tokens, loss), which DuckDB reads as it is.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glasshouse.attribution.logra.layout import Block, Layout
from glasshouse.attribution.logra.number import BYTES, from_numpy, scales, to_numpy
from glasshouse.attribution.logra.sketching import shard_name, write_shard
from glasshouse.attribution.stages.contract import Query, token_scores
from glasshouse.runtime import files
from glasshouse.runtime.errors import RunError
from glasshouse.subjects.capture import Pair

FORMAT = 1
AHEAD = 2
"""Shards read ahead by as many threads."""
CHUNK = 1 << 21
"""Stored numbers turned to float32 at once: what a core's cache can hold pays, a whole shard does not."""


@dataclass(frozen=True)
class Part:
    """One shard read into memory: stored lines, their scales, and the row (within the part) of each line."""

    layout: Layout
    first: int  # its first row in the log
    rows: int
    lines: Tensor  # [L, stored]
    scale: Tensor  # [L]
    owner: Tensor | None  # [L], None where a line is a row

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """Lines in float32, not scaled yet, some at a time."""
        size = max(1, CHUNK // max(self.layout.stored, 1))
        for k in range(0, len(self.lines), size):
            at = slice(k, min(k + size, len(self.lines)))
            yield at, self.lines[at].float()

    def line_scores(self, queries: Tensor) -> Tensor:
        """Products with queries [Q, width] of every line, [Q, L]."""
        found = torch.empty(len(queries), len(self.lines))
        for at, lines in self.chunks():
            if self.layout.unit == "row":
                torch.mm(queries, lines.T, out=found[:, at])
            else:
                found[:, at] = sum(self._halved(queries, block, lines) for block in self.layout.blocks)
        return self._scaled(found)

    def block_line_scores(self, queries: Tensor, block: Block) -> Tensor:
        """One block's part of `line_scores`."""
        found = torch.empty(len(queries), len(self.lines))
        for at, lines in self.chunks():
            if self.layout.unit == "row":
                found[:, at] = queries[:, block.columns] @ lines[:, block.columns].T
            else:
                found[:, at] = self._halved(queries, block, lines)
        return self._scaled(found)

    def by_row(self, per_line: Tensor) -> Tensor:
        """Line scores [Q, L] added up over the tokens of a row, [Q, rows]."""
        if self.owner is None:
            return per_line
        return per_line.new_zeros(len(per_line), self.rows).index_add_(1, self.owner, per_line)

    def sketches(self, block: Block) -> Tensor:
        """The block's sketch of every row, [rows, size] float32."""
        if self.layout.unit == "row":
            return self.lines[:, block.columns].float() * self.scale[:, None]
        assert self.owner is not None
        found = torch.zeros(self.rows, block.size)
        for at, lines in self.chunks():
            g, a = self._sides(block, lines * self.scale[at, None])
            found.index_add_(0, self.owner[at], (g[:, :, None] * a[:, None, :]).flatten(1))
        return found

    def whole(self) -> Tensor:
        """The sketch of every row, [rows, width] float32."""
        return torch.cat([self.sketches(block) for block in self.layout.blocks], 1)

    def _scaled(self, scores: Tensor) -> Tensor:
        """Scores of lines as they are stored, times their scale: once a sketch, twice two halves."""
        return scores.mul_(self.scale if self.layout.unit == "row" else self.scale.square())

    def _sides(self, block: Block, lines: Tensor) -> tuple[Tensor, Tensor]:
        middle = block.line + block.out
        return lines[:, block.line : middle], lines[:, middle : middle + block.inn]

    def _halved(self, queries: Tensor, block: Block, lines: Tensor) -> Tensor:
        g, a = self._sides(block, lines)
        V = queries[:, block.columns].view(-1, block.out, block.inn)
        return token_scores(Query(V), Pair(a[None], g[None]))[:, 0]


@dataclass
class SketchLog:
    """The log of `len(ids)` rows. `shards[i]` are stored lines, or the file that holds them."""

    layout: Layout
    dtype: str
    shards: list[Tensor | Path]
    exponents: list[Tensor]
    lines: list[Tensor]  # per shard, lines of each row
    ids: tuple[str, ...]
    loss: Tensor
    tokens: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def bytes(self) -> int:
        """Bytes of all stored lines, file headers not counted."""
        return sum(len(e) for e in self.exponents) * self.layout.stored * BYTES[self.dtype]

    @property
    def sizes(self) -> list[int]:
        """Lines of each row."""
        return torch.cat(self.lines).tolist()

    def starts(self) -> list[int]:
        """The first row of every shard, and the number of rows."""
        return np.cumsum([0, *(len(part) for part in self.lines)]).tolist()

    def read(self, number: int) -> Part:
        """One shard. Raises RunError naming it where it is missing or cut short."""
        shard, counts = self.shards[number], self.lines[number]
        stored = shard if isinstance(shard, Tensor) else self._load(shard, len(self.exponents[number]))
        owner = None
        if self.layout.unit == "token":
            owner = torch.repeat_interleave(torch.arange(len(counts)), counts)
        first = self.starts()[number]
        return Part(self.layout, first, len(counts), stored, scales(self.exponents[number]), owner)

    def parts(self) -> Iterator[Part]:
        """All shards in order; from disk, the next ones are read while one is worked on."""
        if all(isinstance(shard, Tensor) for shard in self.shards):
            yield from (self.read(i) for i in range(len(self.shards)))
            return
        waiting: deque[Future[Part]] = deque()
        with ThreadPoolExecutor(AHEAD) as pool:
            for i in range(len(self.shards)):
                waiting.append(pool.submit(self.read, i))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def vectors(self) -> np.ndarray:
        """All sketches in memory, [N, width] float32: for small logs and other people's vector indexes."""
        return torch.cat([part.whole() for part in self.parts()]).numpy()

    def frame(self) -> Any:
        """The index: id, shard, offset and lines in it, tokens, loss."""
        import pandas as pd

        shard = np.repeat(np.arange(len(self.lines)), [len(part) for part in self.lines])
        offset = np.concatenate([np.cumsum([0, *part.tolist()])[:-1] for part in self.lines])
        return pd.DataFrame({
            "id": np.asarray(self.ids, dtype=object), "shard": shard, "offset": offset,
            "lines": torch.cat(self.lines).numpy(), "tokens": self.tokens.numpy(), "loss": self.loss.numpy(),
        })  # fmt: skip

    # ── disk ─────────────────────────────────────────────────────────────────

    def save(self, folder: Path) -> None:
        """Write the log; shards that are on disk already are linked (or copied), those of `folder` left."""
        sketches, shards = folder / "sketches", []
        for i, shard in enumerate(self.shards):
            target = sketches / shard_name(i)
            if isinstance(shard, Tensor):
                write_shard(sketches, i, shard)
            elif shard.resolve() != target.resolve():
                _link(shard, target)
            shards.append(
                {"rows": len(self.lines[i]), "lines": len(self.exponents[i]), "bytes": target.stat().st_size}
            )
        _write_array(folder / "scales.npy", to_numpy(torch.cat(self.exponents)))
        buffer = io.BytesIO()
        self.frame().to_parquet(buffer, index=False)
        files.write_bytes(folder / "index.parquet", buffer.getvalue())
        about = {"format": FORMAT, "dtype": self.dtype, "shards": shards, **self.layout.to_json()}
        files.write_json(folder / "log.json", about)

    @classmethod
    def open(cls, folder: Path | str) -> SketchLog:
        """The log in `folder`, no shard read yet. RunError names what is missing, damaged or cut short."""
        folder = Path(folder)
        try:
            about = files.read_json(folder / "log.json")
            exponents = torch.from_numpy(np.load(folder / "scales.npy", allow_pickle=False))
            index = _read_index(folder / "index.parquet")
            layout, shards = Layout.from_json(about), about["shards"]
            sizes = [int(shard["lines"]) for shard in shards]
            rows = [int(shard["rows"]) for shard in shards]
            counts = torch.tensor(index["lines"].to_numpy()).split(rows)
            parts = list(exponents.split(sizes))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, json.JSONDecodeError) as error:
            raise RunError(
                f"its log is missing or damaged ({type(error).__name__})", where=str(folder),
                fix="log again with the same store: whole shards are kept",
            ) from error  # fmt: skip
        paths: list[Tensor | Path] = []
        for i, shard in enumerate(shards):
            check_shard(folder / "sketches" / shard_name(i), int(shard["bytes"]))
            paths.append(folder / "sketches" / shard_name(i))
        return cls(
            layout, about["dtype"], paths, parts, list(counts), tuple(index["id"]),
            torch.tensor(index["loss"].to_numpy(dtype=np.float32)), torch.tensor(index["tokens"].to_numpy()),
        )  # fmt: skip

    def _load(self, path: Path, lines: int) -> Tensor:
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise _damaged(path, "is missing" if not path.exists() else "cannot be read") from error
        if array.shape != (lines, self.layout.stored):
            raise _damaged(path, f"has shape {array.shape}, not {(lines, self.layout.stored)}")
        return from_numpy(array, self.dtype)


def check_shard(path: Path, size: int) -> None:
    """Raise RunError where a shard is missing or has not the bytes that were written."""
    if not path.exists():
        raise _damaged(path, "is missing")
    if path.stat().st_size != size:
        raise _damaged(path, f"has {path.stat().st_size} bytes, not {size}")


def _damaged(path: Path, what: str) -> RunError:
    return RunError(
        f"the shard {what}",
        where=str(path),
        fix="log again with the same store: only such shards are made again",
    )


def _link(source: Path, target: Path) -> None:
    with files.atomic_path(target) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:  # another file system
            shutil.copyfile(source, temporary)


def _write_array(path: Path, array: Any) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    files.write_bytes(path, buffer.getvalue())


def _read_index(path: Path) -> Any:
    import pandas as pd
    import pyarrow

    try:
        return pd.read_parquet(path)
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from error


def joined(
    parts: Sequence[dict[str, Tensor]], layout: Layout, dtype: str, ids: Sequence[str], folder: Path | None
) -> SketchLog:
    """The log of what `log_shard` returned for every shard."""
    shards: list[Tensor | Path] = [
        part["sketches"] if folder is None else folder / shard_name(i) for i, part in enumerate(parts)
    ]
    return SketchLog(
        layout, dtype, shards, [p["exponents"] for p in parts], [p["lines"] for p in parts], tuple(ids),
        torch.cat([p["loss"] for p in parts]), torch.cat([p["tokens"] for p in parts]),
    )  # fmt: skip
