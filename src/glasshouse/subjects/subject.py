"""The subject: a model under study behind one interface, whatever its family."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glasshouse.corpora.rows import TokenBatch, TokenRow, pad
from glasshouse.runtime.errors import InputError, UnknownArchitecture
from glasshouse.subjects import hooks, scoring, views
from glasshouse.subjects.batches import check_batch, check_rows
from glasshouse.subjects.generation import Completion, Sample, Sampling, generate_rows, texts
from glasshouse.subjects.harvest import Collected, collect
from glasshouse.subjects.hooks import Reduce, Session
from glasshouse.subjects.modes import eager, evaluating
from glasshouse.subjects.opened import Opened
from glasshouse.subjects.patches import Patch, Positions
from glasshouse.subjects.prompts import Prompt, need_tokenizer
from glasshouse.subjects.selftest import SelfTest, run_self_test
from glasshouse.subjects.sites import Site


class Subject(Opened):
    """An opened language model; get one from `as_subject`.

    Prompts are texts, sequences of `Turn`, or token ids. For a chat model (`is_chat`: its tokenizer has a
    chat template) texts and turns pass through the template with the generation prompt; for a base model a
    text is plain tokens. Not safe to share between threads while patches are active.
    """

    # -- text ------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        n: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_new_tokens: int = 32,
        stop_ids: Sequence[int] | None = None,
        patches: Sequence[Patch] = (),
        seed: int = 0,
        batch_tokens: int = 16384,
    ) -> list[list[Completion]]:
        """The n completions of each prompt; temperature 0 is greedy decoding.

        A completion depends on its prompt, `seed`, its row and sample number, never on the other rows. Raises
        InputError naming the first row that is empty or leaves no room for `max_new_tokens` in the context.
        """
        need_tokenizer(self.tokenizer)
        found = self.generate_ids(
            prompts,
            n=n,
            temperature=temperature,
            top_p=top_p,
            max_new_tokens=max_new_tokens,
            stop_ids=stop_ids,
            patches=patches,
            seed=seed,
            batch_tokens=batch_tokens,
        )
        return texts(found, self._decode_all)

    def generate_ids(
        self,
        prompts: Sequence[Prompt],
        *,
        n: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_new_tokens: int = 32,
        stop_ids: Sequence[int] | None = None,
        patches: Sequence[Patch] = (),
        seed: int = 0,
        batch_tokens: int = 16384,
    ) -> list[list[Sample]]:
        """`generate` without the text: needs no tokenizer when prompts are token ids."""
        _check_sampling(n, temperature, top_p, max_new_tokens)
        rows = self._rows(prompts, more=max_new_tokens - 1)
        stop = self.stop_ids if stop_ids is None else tuple(stop_ids)
        how = Sampling(temperature, top_p, max_new_tokens, stop, seed)
        with self._editing(patches), self._forward():
            return generate_rows(
                self.parts.base,
                self.parts.logits,
                rows,
                n,
                how,
                batch_tokens=batch_tokens,
                place=self._place,
                device=self.device,
            )

    # -- probabilities ---------------------------------------------------------------------------------------

    def logprobs(
        self, prompts: Sequence[Prompt], *, patches: Sequence[Patch] = (), batch_tokens: int = 8192
    ) -> Tensor:
        """Next-token log-probabilities after each prompt, in nats: float32 [N, V] on the CPU.

        Raises InputError naming the first row that is empty or longer than the context.
        """
        rows = self._rows(prompts)
        with self._editing(patches), self._forward():
            found = scoring.last_logprobs(
                self.parts.base,
                self.parts.logits,
                rows,
                self.vocab_size,
                batch_tokens=batch_tokens,
                place=self._place if self._edited else None,
                device=self.device,
            )
        return found.clone()  # a tensor one may learn from

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str | Sequence[int]],
        *,
        per_token: bool = False,
        patches: Sequence[Patch] = (),
        batch_tokens: int = 16384,
    ) -> Any:
        """Log-probability of each completion after its prompt, in nats: float32 [N] on the CPU.

        With `per_token` a list of float32 [tokens of the completion] instead. Texts are tokenised as
        `encode_pairs` says; no end-of-turn token is added, so give ids to include one. A prompt shared by
        many completions is run once.
        """
        pairs = self.encode_pairs(prompts, completions)
        rows, said = [row for row, _ in pairs], [reply for _, reply in pairs]
        check_rows(
            [[*row, *reply[:-1]] for row, reply in zip(rows, said, strict=True)],
            context=self.context,
            vocab_size=self.vocab_size,
        )
        check_rows([reply[-1:] for reply in said], context=1, vocab_size=self.vocab_size)
        with self._editing(patches), self._forward():
            found = scoring.score_rows(
                self.parts.base,
                self.parts.logits,
                rows,
                said,
                batch_tokens=batch_tokens,
                place=self._place,
                device=self.device,
                edited=self._edited,
            )
        if per_token:
            return [part.clone() for part in found]
        return torch.tensor([float(part.double().sum()) for part in found])

    # -- inside ----------------------------------------------------------------------------------------------

    def sites(self) -> list[Site]:
        """Every site of this model; `z`, `q`, `k`, `v` and `pattern` can be narrowed to a head (`z.3.5`)."""
        return views.all_sites(self.parts)

    def unembed(self, h: Tensor, vocab_ids: Sequence[int] | Tensor | None = None) -> Tensor:
        """Final norm and output matrix on residuals h [..., d]: logits [..., V], or of `vocab_ids` alone."""
        head: Any = self.parts.unembed
        h = self.parts.final_norm(h.to(self.device, self.dtype))
        if self.parts.after_norm is not None:
            h = self.parts.after_norm(h)
        if vocab_ids is None:
            return self.parts.logits(h)
        ids = torch.as_tensor(vocab_ids)
        if type(head) is not nn.Linear:  # an adapter or a wrapper does more than multiply
            return self.parts.logits(h)[..., ids]
        bias = None if head.bias is None else head.bias[ids]
        return self.parts.capped(nn.functional.linear(h.to(head.weight.device), head.weight[ids], bias))

    def run(
        self,
        batch: TokenBatch | Sequence[Prompt],
        *,
        read: Sequence[str | Site] = (),
        patches: Sequence[Patch] = (),
        positions: Positions | None = None,
        grad: bool = False,
        stop_after: str | Site | None = None,
        logits: bool = True,
        reduce: Reduce | None = None,
    ) -> Run:
        """One forward pass, reading and editing sites.

        `positions` ([n], or one list per row) gathers reads to [B, n, ...] at once, so that full activations
        are never kept. With `grad` reads and logits carry gradients (also through patch values). `stop_after`
        skips everything behind that site. `reduce(site, tensor)` replaces what is kept of each read.
        Prompts are padded on the right; a `TokenBatch` is taken as it is.
        """
        reads = [Site.parse(site) for site in read]
        stop = None if stop_after is None else Site.parse(stop_after)
        tokens = batch if isinstance(batch, TokenBatch) else self._batch(batch)
        check_batch(tokens, context=self.context, vocab_size=self.vocab_size)
        outer = hooks.active(self.parts)
        if outer is not None and patches:
            raise InputError("patches are already active", fix="give all patches in one list")
        session = Session(
            self.parts,
            outer.patches if outer is not None else patches,
            reads,
            grad=grad,
            positions=positions,
            stop_after=stop,
            reduce=reduce,
        )
        patterns = any(site.kind == "pattern" for site in reads)
        with (
            hooks.suspended(outer),
            session,
            self._forward(grad=grad, keep=True),
            eager(self.model, patterns),
        ):
            out = self._pass(session, tokens.to(self.device), logits or Site("logits") in reads)
        missing = [str(site) for site in reads if site not in session.acts]
        if missing:
            raise InputError(f"{', '.join(missing)} come after {stop}", fix="stop later, or read less")
        return Run(out, session.acts, tokens)

    @contextmanager
    def patched(self, patches: Sequence[Patch]) -> Iterator[Subject]:
        """Edits active for any code that runs the model inside the block, this subject's methods included.

        Raises InputError when patches are active already.
        """
        hooks.active(self.parts)
        with Session(self.parts, patches, grad=True):
            yield self

    def attention(
        self,
        batch: TokenBatch | Sequence[Prompt],
        *,
        layers: Sequence[int] | None = None,
        reduce: Callable[[Tensor], Any] | None = None,
    ) -> dict[int, Any]:
        """Attention patterns [B, H, T, T] by layer, or what `reduce` makes of each as it appears.

        The model attends eagerly during the call and as before after it. Padding columns hold no information.
        """
        wanted = [Site("pattern", layer) for layer in (range(self.n_layers) if layers is None else layers)]
        keep = None if reduce is None else lambda _, pattern: reduce(pattern)
        found = self.run(batch, read=wanted, logits=False, reduce=keep)
        return {site.layer: found.acts[site] for site in wanted}

    def freeze_context(
        self,
        prompts: Sequence[Prompt],
        until: int | Sequence[int],
        *,
        layers: Sequence[int] | None = None,
    ) -> list[Patch]:
        """Patches that hold the residuals of the first `until` tokens of each row at their present values.

        Whatever is edited elsewhere, later tokens then read this context, layer by layer (input of each of
        `layers`, by default all).
        """
        rows = self._rows(prompts)
        ends = [until] * len(rows) if isinstance(until, int) else list(until)
        if len(ends) != len(rows) or any(
            not 0 < end <= len(row) for end, row in zip(ends, rows, strict=False)
        ):
            raise InputError(f"until={until} does not lie inside every row", fix="count unpadded tokens")
        sites = [Site("resid_pre", layer) for layer in (range(self.n_layers) if layers is None else layers)]
        acts = self.run(rows, read=sites, logits=False).acts
        spans = [list(range(end)) for end in ends]
        return [Patch(site, "set", acts[site][:, : max(ends)], positions=spans) for site in sites]

    def collect(
        self, prompts: Sequence[Prompt], sites: Sequence[str | Site], folder: Path | str, **options: Any
    ) -> Collected:
        """Activations of many prompts, streamed to disk and resumable; see `harvest.collect` for options."""
        return collect(self, prompts, sites, folder, **options)

    def self_test(self) -> SelfTest:
        """Whether reads, edits and generation of this model mean what they should; cached by its hash."""
        return run_self_test(self)

    def require_self_test(self) -> None:
        """Raise UnknownArchitecture, naming the failed identities, unless the self-test passes."""
        result = self.self_test()
        if not result.passed:
            failed = ", ".join(
                f"{check.name} ({check.error:.2g} > {check.tolerance:.2g})" for check in result.failed
            )
            raise UnknownArchitecture(
                f"the self-test of {self.architecture!r} failed: {failed}",
                where=self.name,
                fix="describe the family with register_arch",
            )

    def _pass(self, session: Session, tokens: TokenBatch, logits: bool) -> Tensor | None:
        lengths = tokens.attention_mask.sum(1)
        rows = torch.arange(len(tokens), device=lengths.device)
        session.place(rows, tokens.attention_mask.argmax(1), lengths)
        padded = not bool(tokens.attention_mask.all())
        try:
            hidden = self.parts.base(
                input_ids=tokens.input_ids,
                attention_mask=tokens.attention_mask if padded else None,
                position_ids=tokens.position_ids,
                use_cache=False,
            ).last_hidden_state
            return self.parts.logits(hidden) if logits else None
        except hooks.Stop:
            return None

    def _batch(self, prompts: Sequence[Prompt]) -> TokenBatch:
        rows = [TokenRow(tuple(ids), tuple(ids), str(i)) for i, ids in enumerate(self._rows(prompts))]
        return pad(rows)

    @contextmanager
    def _editing(self, patches: Sequence[Patch]) -> Iterator[None]:
        outer = hooks.active(self.parts)
        if not patches:
            yield
        elif outer is not None:
            raise InputError("patches are already active", fix="give all patches in one list")
        else:
            with Session(self.parts, patches):
                yield

    @property
    def _edited(self) -> bool:
        return hooks.active(self.parts) is not None

    def _place(self, rows: Tensor, starts: Tensor, prompt_lengths: Tensor) -> None:
        session = hooks.active(self.parts)
        if session is not None:
            session.place(rows, starts, prompt_lengths)

    @contextmanager
    def _forward(self, *, grad: bool = False, keep: bool = False) -> Iterator[None]:
        """Evaluation mode for the block, and no gradients unless `grad`.

        Tensors that leave the block (`keep`) may be learned from later, which inference mode forbids.
        """
        mode = torch.enable_grad() if grad else torch.no_grad() if keep else torch.inference_mode()
        with evaluating(self.model), mode:
            yield


@dataclass(frozen=True)
class Run:
    """What one pass gave: `logits` [B, T, V] or None, `acts` by site, and the padded `batch` it ran on."""

    logits: Tensor | None
    acts: dict[Site, Any]
    batch: TokenBatch

    def __getitem__(self, site: str | Site) -> Any:
        return self.acts[Site.parse(site)]


def _check_sampling(n: int, temperature: float, top_p: float, max_new_tokens: int) -> None:
    for name, value, right in (
        ("n", n, n >= 1),
        ("temperature", temperature, 0 <= temperature < float("inf")),
        ("top_p", top_p, 0 < top_p <= 1),
        ("max_new_tokens", max_new_tokens, max_new_tokens >= 1),
    ):
        if not right:
            raise InputError(f"{name}={value} is out of range", fix="see Subject.generate")
