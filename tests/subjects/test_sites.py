"""Every site against a hand-made reference: the block's own arithmetic, redone from its modules."""

import pytest
import torch
from torch.nn import functional as F

from glasshouse.corpora.rows import TokenRow, pad, rows_to_padded
from glasshouse.runtime.errors import AccessError, InputError
from glasshouse.subjects import Site

# The modules whose outputs a block adds to its residual, where they are not the attention and the MLP.
POST_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")
TERMS = {"olmo2": POST_NORMS, "gemma2": POST_NORMS, "opt": ("self_attn", "fc2")}
TERMS |= {"gpt2": ("attn", "mlp"), "gptj": ("attn", "mlp"), "gpt_neox": ("attention", "mlp")}


def by_hand(subject, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The sites of block 1, recomputed from the inputs of modules caught by plain forward hooks."""
    row, block = subject.parts.architecture, subject.parts.blocks[1]
    caught: dict[str, torch.Tensor] = {}

    def catch(name, module) -> object:
        def hook(_, args, kwargs, out) -> None:
            given = args[0] if args else kwargs["hidden_states"]
            made = out[0] if isinstance(out, tuple) else out
            for side, value in (("in", given), ("out", made)):  # OPT flattens rows around its MLP
                caught[f"{name}.{side}"] = value.clone().reshape(*ids.shape, -1)

        return module.register_forward_hook(hook, with_kwargs=True)

    attention, mlp = TERMS.get(subject.architecture, ("self_attn", "mlp"))
    named = {"attention": attention, "out": row.out_proj, "mlp": mlp, "down": row.down_proj}
    handles = [catch(name, block.get_submodule(path)) for name, path in named.items()]
    handles += [catch(f"qkv{i}", block.get_submodule(path)) for i, path in enumerate(row.qkv)]
    handles += [catch("block", block), catch("norm", subject.parts.final_norm)]
    handles += [catch("head", subject.model.get_output_embeddings())]
    with torch.no_grad():
        logits = subject.model(input_ids=ids).logits
    for handle in handles:
        handle.remove()
    caught["logits"] = logits
    return caught


def projections(subject, caught) -> list[torch.Tensor]:
    """q, k, v as [B, T, heads, dh], from the layout each family documents."""
    layout, d_head = subject.parts.architecture.qkv_layout, subject.parts.d_head
    out = caught["qkv0.out"]
    if layout == "separate":
        return [caught[f"qkv{i}.out"].reshape(*out.shape[:2], -1, d_head) for i in range(3)]
    if layout == "blocks":
        groups = 2 if subject.architecture == "phi3" else 4  # heads of 8: [Q | K | V]
        return [part.unflatten(-1, (-1, d_head)) for part in out.split([32, 8 * groups, 8 * groups], -1)]
    return list(out.reshape(*out.shape[:2], subject.n_heads, 3 * d_head).chunk(3, -1))


def test_every_site_is_what_its_name_says(any_subject) -> None:
    ids = torch.tensor([[5, 9, 33, 2, 7], [8, 8, 1, 250, 3]])
    caught = by_hand(any_subject, ids)
    q, k, v = projections(any_subject, caught)
    z = caught["out.in"].reshape(2, 5, any_subject.n_heads, -1)
    expected = {
        "resid_pre.1": caught["block.in"],
        "resid_post.0": caught["block.in"],
        "resid_post.1": caught["block.out"],
        "final_norm_in": caught["block.out"],
        "final_norm_out": caught["norm.out"],
        "attn_out.1": caught["attention.out"],
        "mlp_out.1": caught["mlp.out"],
        "mlp_act.1": caught["down.in"],
        "z.1": z,
        "z.1.2": z[:, :, 2],
        "q.1": q,
        "k.1": k,
        "v.1": v,
        "v.1.1": v[:, :, 1],
        "logits": caught["head.out"],
    }
    total = caught["block.in"] + caught["attention.out"] + caught["mlp.out"]
    torch.testing.assert_close(total, caught["block.out"], rtol=1e-5, atol=1e-5)
    if any_subject.parts.has_mid:
        expected["resid_mid.1"] = caught["block.in"] + caught["attention.out"]
    run = any_subject.run(ids.tolist(), read=list(expected))
    for site, value in expected.items():
        torch.testing.assert_close(run[site], value, rtol=1e-5, atol=1e-5, msg=lambda m, s=site: f"{s}: {m}")
    torch.testing.assert_close(run.logits, caught["logits"], rtol=1e-5, atol=1e-5)
    # Gemma-2 caps its logits after the output matrix, the others do not.
    assert torch.equal(run["logits"], run.logits) == (any_subject.parts.soft_cap is None)
    assert {str(site) for site in any_subject.sites()} >= {s for s in expected if s.count(".") < 2}


def test_embed_is_the_stream_before_block_0(any_subject) -> None:
    run = any_subject.run([[5, 9, 33]], read=["embed", "resid_pre.0"])
    tokens = any_subject.model.get_input_embeddings()(torch.tensor([[5, 9, 33]]))
    if any_subject.architecture == "gpt2":
        tokens = tokens + any_subject.model.transformer.wpe(torch.arange(3))
    if any_subject.architecture == "opt":  # project_in comes before the positions, which start at 2
        decoder = any_subject.model.model.decoder
        tokens = tokens if decoder.project_in is None else decoder.project_in(tokens)
        tokens = tokens + decoder.embed_positions.weight[2:5]
    if any_subject.architecture == "gemma2":
        weight = any_subject.model.model.embed_tokens.weight
        torch.testing.assert_close(tokens[0], weight[[5, 9, 33]] * 32**0.5)
    torch.testing.assert_close(run["embed"], tokens.detach())
    assert torch.equal(run["embed"], run["resid_pre.0"])


def test_attention_mixes_values_by_the_pattern(any_subject) -> None:
    """Z = pattern @ v, the definition of attention, checks `pattern`, `v` and `z` against one another."""
    rows = [[5, 9, 33, 2, 7]]
    before = any_subject.model.config._attn_implementation
    pattern = any_subject.attention(rows)[1]
    assert any_subject.model.config._attn_implementation == before
    run = any_subject.run(rows, read=["v.1", "z.1"])
    v = run["v.1"].repeat_interleave(any_subject.n_heads // run["v.1"].shape[2], dim=2)
    if getattr(any_subject.model.config, "clip_qkv", None):  # OLMo: after the projection
        clipped = v.clamp(-1.5, 1.5)
        assert not torch.equal(v, clipped)
        v = clipped
    torch.testing.assert_close(torch.einsum("bhts,bshd->bthd", pattern, v), run["z.1"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pattern.sum(-1), torch.ones(pattern.shape[:3]))
    reduced = any_subject.attention(rows, layers=[1], reduce=lambda p: p[:, :, -1].argmax(-1))
    assert torch.equal(reduced[1], pattern[:, :, -1].argmax(-1))
    assert torch.equal(any_subject.run(rows, read=["pattern.1.2"])["pattern.1.2"], pattern[:, 2])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(any_subject, tiny, side) -> None:
    rows = tiny.rows(5)
    batch = pad([TokenRow(tuple(r), tuple(r)) for r in rows], side=side)
    run = any_subject.run(batch, read=["resid_post.0", "z.1"])
    gathered = any_subject.run(batch, read=["resid_post.0", "z.1"], positions=[0, -1])
    last = rows_to_padded(torch.tensor([[0, -1]] * 5), batch)
    for i, row in enumerate(rows):
        alone = any_subject.run([row], read=["resid_post.0", "z.1"])
        real = batch.attention_mask[i].bool()
        torch.testing.assert_close(run.logits[i][real], alone.logits[0], rtol=1e-4, atol=1e-4)
        for site in ("resid_post.0", "z.1"):
            torch.testing.assert_close(run[site][i][real], alone[site][0], rtol=1e-4, atol=1e-4)
            assert torch.equal(gathered[site][i], run[site][i][last[i]])


def test_unembed_gives_the_logits_and_single_columns_of_them(any_subject, tiny) -> None:
    run = any_subject.run(tiny.rows(2, high=3), read=["final_norm_in"])
    torch.testing.assert_close(any_subject.unembed(run["final_norm_in"]), run.logits)
    some = any_subject.unembed(run["final_norm_in"], [7, 0, 299])
    torch.testing.assert_close(some, run.logits[..., [7, 0, 299]])


def test_stop_after_runs_no_later_block(any_subject) -> None:
    called: list[int] = []
    handle = any_subject.parts.blocks[1].register_forward_hook(lambda *_: called.append(1))
    try:
        full = any_subject.run([[1, 2, 3]], read=["resid_post.0", "attn_out.0"])
        assert called == [1]
        early = any_subject.run([[1, 2, 3]], read=["resid_post.0", "attn_out.0"], stop_after="resid_post.0")
    finally:
        handle.remove()
    assert called == [1] and early.logits is None
    assert torch.equal(early["resid_post.0"], full["resid_post.0"])
    assert torch.equal(early["attn_out.0"], full["attn_out.0"])
    with pytest.raises(InputError, match=r"resid_post.1 come after attn_out.0"):
        any_subject.run([[1, 2]], read=["resid_post.1"], stop_after="attn_out.0")


def test_gradients_reach_what_was_read(any_subject) -> None:
    """Reads lie on the path: d(loss)/d(site) is the slope of the loss along it, also for views such as z."""
    sites = ["resid_pre.1", "z.1", "v.1", "mlp_act.1"]
    run = any_subject.run([[5, 9, 33]], read=sites, grad=True)
    loss = F.cross_entropy(run.logits[0, -1:], torch.tensor([3]))
    grads = torch.autograd.grad(loss, [run[site] for site in sites])
    step = 1e-3
    for site, grad in zip(sites, grads, strict=True):
        from glasshouse.subjects import Patch

        direction = grad / grad.norm()
        values = []
        for sign in (1, -1):
            moved = Patch(site, "fn", lambda x, s=sign, d=direction: x + s * step * d)
            logits = any_subject.run([[5, 9, 33]], patches=[moved]).logits.double()
            values.append(F.cross_entropy(logits[0, -1:], torch.tensor([3])))
        slope = float((values[0] - values[1]) / (2 * step))
        assert slope == pytest.approx(float(grad.norm()), rel=2e-2)  # float32 differences over 2e-3


def test_reads_leave_no_hook_and_no_gradient(any_subject) -> None:
    with pytest.raises(RuntimeError, match="stop here"):
        any_subject.run([[1, 2]], read=["z.0"], reduce=_raise)
    hooks = [m for m in any_subject.model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert hooks == []
    assert not any_subject.run([[1, 2]], read=["z.0"])["z.0"].requires_grad


def _raise(*_) -> None:
    raise RuntimeError("stop here")


@pytest.mark.parametrize(
    "family,site,error,message",
    [
        ("gpt2", "resid_pre.2", InputError, "site resid_pre.2: the model has 2 layers"),
        ("llama", "z.0.4", InputError, "site z.0.4: the site has 4 heads"),
        ("llama", "k.0.2", InputError, "site k.0.2: the site has 2 heads"),
        ("gpt_neox", "resid_mid.0", AccessError, "read the same residual"),
        ("gpt2", "nowhere.0", InputError, "unknown site"),
    ],
)
def test_refusals(tiny, family, site, error, message) -> None:
    with pytest.raises(error, match=message):
        tiny.subject(family).run([[1, 2]], read=[site])
    assert Site("resid_mid", 0) not in tiny.subject("gpt_neox").sites()
