"""Lenses: what a model would answer had it stopped at some layer.

h_l is the residual stream entering block l (site `resid_pre.l`), l = 0 .. L-1; h_L (`final_norm_in`) leaves
the last block. U is the final norm followed by the unembedding. The logit lens is U(h_l); the tuned lens is
U(h_l + A_l h_l + b_l) with an affine translator per layer, trained to predict the model's own output (Belrose
et al. 2023, arXiv:2303.08112). A and b start at zero, so weight decay pulls to the logit lens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from glasshouse.internals.tuned_lens.disk import read_settings, read_tensors, write_tensors
from glasshouse.internals.tuned_lens.head import Head, check_width
from glasshouse.internals.tuned_lens.options import Loss, Opt, Options
from glasshouse.internals.tuned_lens.streams import rows_of
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError, NumericalError, StaleError

FORMAT = 1


class Lens:
    """What every lens can do once it knows a model's head: `head_`, `n_layers_`, `d_model_`.

    Every use before `fit` is an InputError.
    """

    head_: Head
    n_layers_: int
    d_model_: int

    def translate(self, h: Tensor, layer: int) -> Tensor:
        """States h [..., d] of `layer` as states of the last layer, fp32 [..., d] (identity here)."""
        self._check(h, layer)
        return h.to(self.head_.device, torch.float32)

    def logits(self, h: Tensor, layer: int, vocab_ids: Sequence[int] | Tensor | None = None) -> Tensor:
        """Logits fp32 [..., V] (or of `vocab_ids` alone) that the lens reads from h [..., d] at `layer`.

        `h` enters block `layer` (site `resid_pre.layer`), 0 <= layer < L. Raises InputError for layer L: what
        transformers calls `hidden_states[-1]` has passed the final norm already; use `final_logits` on
        `final_norm_in`.
        """
        moved = self.translate(h, layer)
        return self.head_.logits(moved, vocab_ids)

    def final_logits(self, h: Tensor, vocab_ids: Sequence[int] | Tensor | None = None) -> Tensor:
        """The model's own logits, fp32 [..., V], from states h [..., d] at `final_norm_in`."""
        self._fitted()
        check_width(h, self.d_model_, "final_norm_in")
        return self.head_.logits(h, vocab_ids)

    def _attach(self, subject: Any) -> None:
        self.head_ = Head.of(subject)
        self.n_layers_, self.d_model_ = subject.n_layers, subject.d_model

    def _fitted(self) -> None:
        if not hasattr(self, "head_"):
            raise InputError(
                f"this {type(self).__name__} knows no model yet", fix="call fit(subject, tokens)"
            )

    def _check(self, h: Tensor, layer: int) -> None:
        self._fitted()
        if layer == self.n_layers_:
            raise InputError(
                f"layer {layer} is the output: hidden_states[-1] of transformers has passed the final norm",
                where=f"layer {layer}",
                fix="read the site final_norm_in and use final_logits",
            )
        if not 0 <= layer < self.n_layers_:
            raise InputError(f"the lens has layers 0 to {self.n_layers_ - 1}", where=f"layer {layer}")
        check_width(h, self.d_model_, f"layer {layer}")
        if not bool(torch.isfinite(h.float().sum())):
            raise NumericalError("hidden states hold NaN or infinity", where=f"layer {layer}")


class LogitLens(Lens):
    """The head applied to every layer (nostalgebraist 2020); nothing is trained.

    >>> from glasshouse.subjects import as_subject
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8))
    >>> lens = LogitLens().fit(as_subject(model, self_test=False))
    >>> tuple(lens.logits(torch.zeros(3, 8), layer=0).shape)
    (3, 16)
    """

    def fit(self, subject: Any, tokens: Any = None) -> Self:
        """Copy the head of `subject`; `tokens` are not needed and not read."""
        from glasshouse.subjects import as_subject

        self._attach(as_subject(subject))
        return self

    def save(self, folder: Path | str) -> Path:
        """Write `config.json`; there is nothing else to keep."""
        self._fitted()
        return _write_config(Path(folder), self, {})

    @classmethod
    def load(cls, folder: Path | str, subject: Any) -> Self:
        """Read what `save` wrote. Raises StaleError for a lens of a model with another head."""
        config, lens = _read_config(Path(folder), cls), cls().fit(subject)
        _check_head(config, lens, Path(folder))
        return lens


class TunedLens(Lens):
    """One affine translator per layer, trained on the subject's own predictions.

    Options: `loss` "kl" (to the model's distribution at the same position, labels not shifted) or "ce" (to
    the next token); `steps` of at least `tokens_per_step` tokens (whole rows); `opt` "sgd" (Nesterov
    `momentum`, lr = lr_scale * (1 - momentum)) or "adam" (amsgrad, lr = 1e-3 * lr_scale, warm-up of min(1000,
    steps / 5)), both linear to 0; `weight_decay` pulls to the logit lens; `clip` bounds the gradient norm of
    the whole lens (None: layers train independently); `bias_only` trains b alone; `skip_first` leaves out the
    first tokens of every row (position 0 often has a huge norm). `batch_tokens` is the size of one forward
    pass; hidden states are kept in memory when they fit in `cache_bytes`. Defaults are the paper's, for one
    GPU; on a processor take `opt="adam", lr_scale=3, steps=400, tokens_per_step=4096`.

    Learned: `weight_` [L, d, d] (A, rows are outputs), `bias_` [L, d], `losses_` [steps, L] in nats, `head_`
    (a frozen copy), `subject_hash_`.
    """

    weight_: Tensor
    bias_: Tensor
    losses_: Tensor
    subject_hash_: str

    def __init__(
        self,
        loss: Loss = "kl",
        *,
        steps: int = 250,
        tokens_per_step: int = 2**18,
        opt: Opt = "sgd",
        lr_scale: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 1e-3,
        clip: float | None = 1.0,
        bias_only: bool = False,
        skip_first: int = 0,
        batch_tokens: int = 16384,
        cache_bytes: int = 2**30,
        seed: int = 0,
    ) -> None:
        self.loss, self.steps, self.tokens_per_step = loss, steps, tokens_per_step
        self.opt, self.lr_scale, self.momentum = opt, lr_scale, momentum
        self.weight_decay, self.clip, self.bias_only = weight_decay, clip, bias_only
        self.skip_first, self.batch_tokens, self.cache_bytes, self.seed = (
            skip_first, batch_tokens, cache_bytes, seed,
        )  # fmt: skip

    def __repr__(self) -> str:
        size = f", {self.n_layers_} layers, d={self.d_model_}" if hasattr(self, "head_") else ""
        return f"TunedLens({self.loss!r}, steps={self.steps}, opt={self.opt!r}{size})"

    def fit(
        self, subject: Any, tokens: Any, *, start: Lens | None = None, store: Path | str | None = None
    ) -> Self:
        """Train on rows of tokens (texts, ids, `TokenBatch`, tensor [N, T]; `chunked` cuts long texts).

        `start` is a lens to start from (another model's of the same width, or a published one). `store` is a
        folder for snapshots: the same call after a kill goes on there and ends in the same bytes. Raises
        InputError for bad options, rows or start, StaleError for the store of another training,
        NumericalError for NaN in the model or a loss that diverges.
        """
        from glasshouse.internals.tuned_lens.supply import Supply
        from glasshouse.internals.tuned_lens.training import train
        from glasshouse.subjects import as_subject

        options, subject = self._options(), as_subject(subject)
        rows = rows_of(subject, tokens)
        self._attach(subject)
        supply = Supply(subject, self.head_, rows, options, self.cache_bytes)
        weight, bias = self._start(start)
        job = {"options": options.facts(), "model": subject.hash, "cached": supply.cached,
               "rows": files.sha256_json(supply.rows), "start": _hash(weight, bias)}  # fmt: skip
        folder = None if store is None else Path(store)
        self.weight_, self.bias_, self.losses_ = train(
            self.head_, supply, weight, bias, options, store=folder, job=job
        )
        self.subject_hash_ = subject.hash
        return self

    def translate(self, h: Tensor, layer: int) -> Tensor:
        """The translated state h + A_l h + b_l, fp32 [..., d]; differentiable in h."""
        h = super().translate(h, layer)
        return h + torch.nn.functional.linear(h, self.weight_[layer], self.bias_[layer])

    def save(self, folder: Path | str) -> Path:
        """Write `lens.safetensors` (keys `{l}.weight`, `{l}.bias`), then `config.json`."""
        self._fitted()
        folder = Path(folder)
        layers = range(self.n_layers_)
        tensors = {f"{l}.weight": self.weight_[l] for l in layers} | {
            f"{l}.bias": self.bias_[l] for l in layers
        }
        write_tensors(
            folder / "lens.safetensors", {**tensors, "losses": self.losses_}, {"kind": "tuned lens"}
        )
        options = {**self._options().facts(), "cache_bytes": self.cache_bytes}
        return _write_config(folder, self, {"options": options, "subject": self.subject_hash_})

    @classmethod
    def load(cls, folder: Path | str, subject: Any) -> Self:
        """Read what `save` wrote, for the same model or one with the same head.

        Raises StaleError naming both heads when they differ, InputError or RunError for a damaged folder.
        """
        from glasshouse.subjects import as_subject

        folder = Path(folder)
        config = _read_config(folder, cls)
        try:
            lens = cls(**config["options"])
            lens.subject_hash_ = str(config["subject"])
        except (KeyError, TypeError) as error:
            raise InputError(
                f"its options are damaged ({error})", where=str(folder / "config.json")
            ) from error
        lens._attach(as_subject(subject))
        _check_head(config, lens, folder)
        tensors, _ = read_tensors(folder / "lens.safetensors")
        lens._take(tensors, where=str(folder / "lens.safetensors"))
        return lens

    @classmethod
    def load_hf(cls, folder: Path | str, subject: Any, subfolder: str = "") -> Self:
        """A lens published for `tuned-lens`, from a local folder; see `published.read_published`."""
        from glasshouse.internals.tuned_lens.published import read_published
        from glasshouse.subjects import as_subject

        subject = as_subject(subject)
        lens = cls()
        lens._attach(subject)
        where = Path(folder) / subfolder
        lens._take(read_published(where, subject), where=str(where))
        lens.subject_hash_ = subject.hash
        return lens

    def _options(self) -> Options:
        return Options(
            self.loss, self.steps, self.tokens_per_step, self.opt, self.lr_scale, self.momentum,
            self.weight_decay, self.clip, self.bias_only, self.skip_first, self.batch_tokens, self.seed,
        )  # fmt: skip

    def _start(self, start: Lens | None) -> tuple[Tensor, Tensor]:
        shape, device = (self.n_layers_, self.d_model_), self.head_.device
        if not isinstance(start, TunedLens):
            zeros = torch.zeros(*shape, self.d_model_, device=device)
            return zeros, torch.zeros(shape, device=device)
        start._fitted()
        if tuple(start.bias_.shape) != shape:
            raise InputError(
                f"the lens to start from has (layers, width) {tuple(start.bias_.shape)}, the model {shape}",
                fix="give a lens of a model of the same shape",
            )
        return start.weight_.to(device), start.bias_.to(device)

    def _take(self, tensors: dict[str, Tensor], where: str) -> None:
        """The translators of every layer, checked. Raises InputError for missing ones or other shapes."""
        shapes = {"weight": (self.d_model_, self.d_model_), "bias": (self.d_model_,)}
        stacks: dict[str, Tensor] = {}
        for name, shape in shapes.items():
            keys = [f"{layer}.{name}" for layer in range(self.n_layers_)]
            wrong = [key for key in keys if key not in tensors or tuple(tensors[key].shape) != shape]
            extra = f"{self.n_layers_}.{name}"
            if wrong or extra in tensors:
                raise InputError(
                    f"{(wrong or [extra])[0]} does not fit a model of {self.n_layers_} layers, width "
                    f"{self.d_model_}",
                    where=where,
                    fix="give the lens of this model",
                )
            stacks[name] = torch.stack([tensors[key].float() for key in keys]).to(self.head_.device)
            if not bool(torch.isfinite(stacks[name]).all()):
                raise NumericalError(f"a {name} of the lens holds NaN or infinity", where=where)
        self.weight_, self.bias_ = stacks["weight"], stacks["bias"]
        self.losses_ = tensors.get("losses", torch.zeros(0, self.n_layers_))


def _hash(*tensors: Tensor) -> str:
    parts = [t.detach().cpu().contiguous().numpy().tobytes() for t in tensors]
    return files.sha256_bytes(b"".join(parts))


def _write_config(folder: Path, lens: Lens, more: dict[str, Any]) -> Path:
    kind = type(lens).__name__
    head = {"unembed_hash": lens.head_.hash, "model": lens.head_.name, "vocab_size": lens.head_.vocab_size}
    shape = {"n_layers": lens.n_layers_, "d_model": lens.d_model_}
    files.write_json(folder / "config.json", {"format": FORMAT, "lens": kind, **head, **shape, **more})
    return folder


def _read_config(folder: Path, kind: type[Lens]) -> dict[str, Any]:
    """The settings of a saved lens. Raises InputError for another kind of lens or a damaged file."""
    path = folder / "config.json"
    config = read_settings(path, keys=("lens", "unembed_hash", "model", "n_layers", "d_model"))
    if config["lens"] != kind.__name__:
        raise InputError(f"it holds a {config['lens']}", where=str(path), fix=f"give a saved {kind.__name__}")
    return config


def _check_head(config: dict[str, Any], lens: Lens, folder: Path) -> None:
    """Raise StaleError, naming both models, unless the saved lens reads through this very head."""
    if (config["unembed_hash"], config["n_layers"]) == (lens.head_.hash, lens.n_layers_):
        return
    raise StaleError(
        f"the lens was fitted to {config['model']!r} (unembedding {str(config['unembed_hash'])[:12]}, "
        f"{config['n_layers']} layers), not to {lens.head_.name!r} ({lens.head_.hash[:12]}, "
        f"{lens.n_layers_} layers)",
        where=str(folder),
        fix="fit a lens for this model, or start one from it",
    )
