"""Lenses published for the package `tuned-lens`: a folder with `config.json` and `params.pt`, read locally.

`params.pt` is a zip whose index is a pickle. Nothing is unpickled here: `torch_tensors` walks the index as a
list of instructions and knows the two dozen of them that a dictionary of tensors needs. A name in the file is
compared with a short list and never imported, so no file can make this code run anything. Whatever else a
file holds is refused; a `params.safetensors` beside it is taken first.
"""

from __future__ import annotations

import hashlib
import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from glasshouse.internals.tuned_lens.disk import read_settings, read_tensors
from glasshouse.runtime.errors import InputError, StaleError

DTYPES = {"FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
          "DoubleStorage": torch.float64}  # fmt: skip
CONVERT = (
    "where you trust the file, convert it once: safetensors.torch.save_file(torch.load('params.pt', "
    "weights_only=True), 'params.safetensors')"
)


def read_published(folder: Path, subject: Any) -> dict[str, Tensor]:
    """Tensors `{l}.weight` and `{l}.bias` of every layer.

    Raises StaleError, naming both models, for a lens of another width, depth or unembedding; InputError for
    files that are missing or hold anything but tensors.
    """
    if not folder.is_dir():
        raise InputError("there is no such folder", where=str(folder), fix="download the lens first")
    config = read_settings(folder / "config.json", keys=("base_model_name_or_path", "d_model"))
    _check(config, subject, folder)
    for name in ("params.safetensors", "lens.safetensors"):
        if (folder / name).exists():
            return read_tensors(folder / name)[0]
    if not (folder / "params.pt").exists():
        raise InputError("it has no params.safetensors and no params.pt", where=str(folder))
    return torch_tensors(folder / "params.pt")


def _check(config: dict[str, Any], subject: Any, folder: Path) -> None:
    layers = config.get("num_hidden_layers", subject.n_layers)
    theirs = (config["d_model"], layers)
    if theirs != (subject.d_model, subject.n_layers):
        raise StaleError(
            f"the lens is for {config['base_model_name_or_path']!r} (width, layers {theirs}), not for "
            f"{subject.name!r} ({subject.d_model}, {subject.n_layers})",
            where=str(folder),
            fix="give the lens of this model",
        )
    told = config.get("unembed_hash")
    if told and told != published_hash(subject):
        raise StaleError(
            f"the lens is for {config['base_model_name_or_path']!r}, whose unembedding ({told[:12]}) is not "
            f"that of {subject.name!r} ({published_hash(subject)[:12]})",
            where=str(folder),
            fix="give the lens of this model",
        )


def published_hash(subject: Any) -> str:
    """The hash in published settings: SHA-256 of numpy's abridged print of the output matrix, one digit."""
    matrix = subject.parts.unembed.weight.detach().cpu().float().numpy()
    with np.printoptions(threshold=1000, edgeitems=3, linewidth=75, suppress=False, floatmode="maxprec"):
        return hashlib.sha256(np.array_str(matrix, precision=1).encode()).hexdigest()


# -- the index of a torch file, read as data -----------------------------------------------------------------


class _Name(NamedTuple):
    """A name that a file mentions; compared, never imported."""

    text: str


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    key: str


_MARK = object()


def torch_tensors(path: Path) -> dict[str, Tensor]:
    """The dictionary of tensors in a torch file. Raises InputError for anything else."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(names) != 1:
                raise ValueError("it is not a torch file")
            found = _Index(archive, names[0].removesuffix("data.pkl")).read(archive.read(names[0]))
    except InputError:
        raise
    except Exception as error:  # a hostile file may fail anywhere; the reason is told, never the file obeyed
        raise InputError(
            f"it holds more than a dictionary of tensors ({type(error).__name__}: {error})"[:200],
            where=str(path), fix=CONVERT,
        ) from error  # fmt: skip
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise InputError("it holds no dictionary of tensors", where=str(path), fix=CONVERT)
    return found


class _Index:
    """A stack machine for the index: builds strings, numbers, tuples, dictionaries and tensors."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        self.archive, self.root = archive, root
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def read(self, code: bytes) -> Any:
        """What the instructions leave on the stack."""
        for opcode, argument, _ in pickletools.genops(code):
            if opcode.name == "STOP":
                return self.stack[-1]
            self._do(opcode.name, argument)
        raise ValueError("the index does not end")

    def _do(self, name: str, argument: Any) -> None:
        constants = {"EMPTY_TUPLE": (), "NONE": None, "NEWTRUE": True, "NEWFALSE": False, "MARK": _MARK}
        if name in ("PROTO", "FRAME"):
            return
        if name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name in ("BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1"):
            self.stack.append(argument)
        elif name in constants:
            self.stack.append(constants[name])
        elif name == "EMPTY_DICT":
            self.stack.append({})
        elif name == "GLOBAL":
            self.stack.append(_Name(argument))
        else:
            self._combine(name)

    def _combine(self, name: str) -> None:
        handlers: dict[str, Callable[[], None]] = {
            "TUPLE": lambda: self.stack.append(tuple(self._marked())),
            "TUPLE1": lambda: self._tuple(1), "TUPLE2": lambda: self._tuple(2),
            "TUPLE3": lambda: self._tuple(3), "SETITEM": self._set_one, "SETITEMS": self._set_all,
            "BINPERSID": self._storage, "REDUCE": self._call, "BUILD": self._drop,
        }  # fmt: skip
        if name not in handlers:
            raise ValueError(f"the instruction {name} builds no tensor")
        handlers[name]()

    def _marked(self) -> list[Any]:
        at = max(i for i, one in enumerate(self.stack) if one is _MARK)
        found = self.stack[at + 1 :]
        del self.stack[at:]
        return found

    def _tuple(self, n: int) -> None:
        self.stack[-n:] = [tuple(self.stack[-n:])]

    def _set_one(self) -> None:
        key, value = self.stack[-2:]
        del self.stack[-2:]
        self.stack[-1][key] = value

    def _set_all(self) -> None:
        pairs = self._marked()
        self.stack[-1].update(zip(pairs[::2], pairs[1::2], strict=True))

    def _drop(self) -> None:
        self.stack.pop()  # attributes of a state dictionary: versions of its modules

    def _storage(self) -> None:
        kind, name, key, _, _ = self.stack.pop()
        module, _, storage = name.text.partition(" ")
        if kind != "storage" or module != "torch" or storage not in DTYPES:
            raise ValueError(f"the storage {name.text!r} is not known")
        self.stack.append(_Storage(DTYPES[storage], str(key)))

    def _call(self) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        if name == _Name("collections OrderedDict") and arguments == ():
            self.stack.append({})
        elif name == _Name("torch._utils _rebuild_tensor_v2"):
            self.stack.append(self._tensor(*arguments[:4]))
        else:
            raise ValueError(f"it asks to call {name!r:.80}")

    def _tensor(
        self, storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]
    ) -> Tensor:
        data = self.archive.read(f"{self.root}data/{storage.key}")
        flat = torch.frombuffer(bytearray(data), dtype=storage.dtype)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if min((offset, *size, *stride)) < 0 or last >= len(flat):
            raise ValueError(f"a tensor {size} lies outside its storage")
        return torch.as_strided(flat, size, stride, offset).clone()
