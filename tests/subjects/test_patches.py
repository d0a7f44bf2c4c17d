"""Edits do what they say: each operation against arithmetic by hand, at the right rows, places and phase."""

import threading

import pytest
import torch
from torch.nn import functional as F

from glasshouse.corpora.rows import TokenRow, pad
from glasshouse.runtime.errors import AccessError, InputError
from glasshouse.subjects import Patch, Site

VALUE = torch.linspace(-1, 1, 32)
DIM = {"resid_pre.1": (32,), "z.1": (4, 8), "z.1.2": (8,), "mlp_act.1": None, "q.1": (4, 8), "v.1.1": (8,)}


def value_for(subject, site: str) -> torch.Tensor:
    shape = subject.run([[1]], read=[site])[site].shape[2:]
    return torch.linspace(-1, 1, shape.numel()).reshape(shape)


OPS = {
    "set": lambda x, v: v.expand_as(x),
    "add": lambda x, v: x + v,
    "scale": lambda x, v: x * v,
    "project_out": lambda x, v: x - (x * v).sum(-1, keepdim=True) * v / (v * v).sum(-1, keepdim=True),
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("site", DIM)
def test_each_operation_at_each_kind_of_site(any_subject, op, site) -> None:
    rows = [[5, 9, 33], [4, 4, 2]]
    v = value_for(any_subject, site)
    before = any_subject.run(rows, read=[site])
    after = any_subject.run(rows, read=[site], patches=[Patch(site, op, v)])
    torch.testing.assert_close(after[site], OPS[op](before[site], v), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(after.logits, before.logits, atol=1e-3)


@pytest.mark.parametrize(
    "site",
    [
        "embed",
        "resid_post.0",
        "attn_out.0",
        "mlp_out.0",
        "z.0",
        "q.0",
        "k.0",
        "v.0",
        "mlp_act.0",
        "final_norm_out",
    ],
)
def test_an_edit_reaches_the_logits_as_it_would_in_the_module(any_subject, site) -> None:
    """Setting a site to what it is in another row gives, at a whole site, what a plain hook would give."""
    kind = Site.parse(site).kind
    other = any_subject.run([[7, 8, 9]], read=[site])[site]
    found = any_subject.run([[5, 9, 33]], patches=[Patch(site, "set", other)]).logits
    location = {"embed": "resid_pre.0"}.get(site, site)
    assert torch.allclose(
        found, any_subject.run([[5, 9, 33]], patches=[Patch(location, "set", other)]).logits
    )
    plain = any_subject.run([[5, 9, 33]]).logits
    swapped = any_subject.run([[7, 8, 9]]).logits
    if kind in ("embed", "resid_post", "final_norm_out"):  # these determine everything after them
        torch.testing.assert_close(found, swapped, rtol=1e-5, atol=1e-5)
    else:
        assert not torch.allclose(found, plain, atol=1e-3) and not torch.allclose(found, swapped, atol=1e-3)


def test_resid_mid_edits_the_residual_and_not_only_the_norm(tiny) -> None:
    """Adding v between attention and MLP equals adding it to attn_out, term by term."""
    for family in ("gpt2", "llama", "gpt_neox_sequential"):
        subject = tiny.subject(family)
        read = ["resid_mid.0", "mlp_out.0", "resid_post.0"]
        mid = subject.run([[5, 9, 33]], read=read, patches=[Patch("resid_mid.0", "add", VALUE)])
        out = subject.run([[5, 9, 33]], read=read, patches=[Patch("attn_out.0", "add", VALUE)])
        for site in read:
            torch.testing.assert_close(mid[site], out[site], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mid.logits, out.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_are_those_of_the_unpadded_row(tiny, side) -> None:
    subject, rows = tiny.subject("llama"), [[5, 9, 33, 2], [4, 4], [7, 1, 2]]
    batch = pad([TokenRow(tuple(r), tuple(r)) for r in rows], side=side)
    values = torch.randn(3, 2, 32, generator=torch.Generator().manual_seed(0))
    wanted = [[0, 3], [-1], [1, -1]]  # lists of different lengths; -1 is the end of each row
    patch = Patch("resid_pre.1", "set", values, positions=wanted)
    before = subject.run(batch, read=["resid_pre.1"])["resid_pre.1"]
    after = subject.run(batch, read=["resid_pre.1"], patches=[patch])["resid_pre.1"]
    for i, row in enumerate(rows):
        real = batch.attention_mask[i].bool()
        expected = before[i][real].clone()
        for j, position in enumerate(wanted[i]):
            expected[position] = values[i, j]
        torch.testing.assert_close(after[i][real], expected)
        assert len(expected) == len(row)


def test_values_per_position_rows_and_order(tiny) -> None:
    subject, rows = tiny.subject("gpt2"), [[5, 9, 33], [4, 4, 2], [7, 1, 2]]
    per_position = torch.stack([VALUE, 2 * VALUE])
    before = subject.run(rows, read=["resid_pre.1"])["resid_pre.1"]
    patches = [
        Patch("resid_pre.1", "add", per_position, positions=[0, 2], rows=[1]),
        Patch("resid_pre.1", "scale", 3.0, rows=[1, 2], positions=[2]),
        Patch("resid_pre.1", "set", torch.stack([VALUE, -VALUE])[:, None], positions=[1], rows=[2, 0]),
    ]
    after = subject.run(rows, read=["resid_pre.1"], patches=patches)["resid_pre.1"]
    expected = before.clone()
    expected[1, 0] += VALUE
    expected[1, 2] = (expected[1, 2] + 2 * VALUE) * 3
    expected[2, 2] *= 3
    expected[2, 1], expected[0, 1] = VALUE, -VALUE
    torch.testing.assert_close(after, expected)


def test_the_function_sees_and_returns_the_selected_values(tiny) -> None:
    seen: list[torch.Size] = []

    def double(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.shape)
        return 2 * x

    subject = tiny.subject("gpt2")
    before = subject.run([[1, 2, 3]], read=["z.0"])["z.0"]
    after = subject.run([[1, 2, 3]], read=["z.0"], patches=[Patch("z.0", "fn", double, positions=[1])])["z.0"]
    torch.testing.assert_close(after[:, 1], 2 * before[:, 1])
    assert torch.equal(after[:, 0], before[:, 0]) and seen == [(1, 4, 8)]


def test_values_and_activations_are_never_changed_in_place(any_subject) -> None:
    value = VALUE.clone()
    before = any_subject.run([[1, 2, 3]], read=["resid_pre.1", "resid_post.0"])
    kept = before["resid_post.0"].clone()
    patches = [Patch("resid_pre.1", "add", value, positions=[0]), Patch("resid_pre.1", "scale", 2.0)]
    after = any_subject.run([[1, 2, 3]], read=["resid_pre.1", "resid_post.0"], patches=patches)
    assert torch.equal(value, VALUE) and torch.equal(before["resid_post.0"], kept)
    assert torch.equal(after["resid_post.0"], kept)  # read before the edit of the next site
    assert torch.equal(any_subject.run([[1, 2, 3]]).logits, before.logits)


def test_gradients_flow_through_an_edit(any_subject) -> None:
    value = torch.zeros(32, requires_grad=True)
    patch = Patch("resid_pre.1", "add", value, positions=[1])
    run = any_subject.run([[5, 9, 33]], patches=[patch], grad=True)
    loss = F.cross_entropy(run.logits[0, -1:], torch.tensor([3]))
    (grad,) = torch.autograd.grad(loss, value)
    full = any_subject.run([[5, 9, 33]], read=["resid_pre.1"], grad=True)
    loss = F.cross_entropy(full.logits[0, -1:], torch.tensor([3]))
    (expected,) = torch.autograd.grad(loss, full["resid_pre.1"])
    torch.testing.assert_close(grad, expected[0, 1], rtol=1e-4, atol=1e-6)


def test_bf16_values_are_cast_at_the_site(tiny) -> None:
    subject = tiny.subject("llama", torch.bfloat16)
    for op in OPS:
        run = subject.run([[1, 2]], read=["resid_pre.1"], patches=[Patch("resid_pre.1", op, VALUE.double())])
        assert run["resid_pre.1"].dtype == torch.bfloat16 and bool(run.logits.isfinite().all())


# -- generation


def slow_greedy(subject, row, steps, patches_at) -> list[int]:
    """Greedy decoding by full passes, every pass patched as `patches_at(prompt length, length)` says."""
    ids = list(row)
    for _ in range(steps):
        logits = subject.run([ids], patches=patches_at(len(row), len(ids))).logits
        ids.append(int(logits[0, -1].argmax()))
    return ids[len(row) :]


PHASES = {
    "prefill": lambda n, m: range(n),
    "new": lambda n, m: range(n, m),
    "every": lambda n, m: range(m),
}


@pytest.mark.parametrize("when", PHASES)
def test_generation_under_edits_equals_full_passes(any_subject, tiny, when) -> None:
    rows = tiny.rows(4)

    def at(n: int, m: int) -> list[Patch]:
        span = list(PHASES[when](n, m))
        return [Patch("resid_pre.1", "add", 3 * VALUE, positions=span)] if span else []

    expected = [slow_greedy(any_subject, row, 6, at) for row in rows]
    options = {"max_new_tokens": 6, "stop_ids": ()}
    found = any_subject.generate(rows, patches=[Patch("resid_pre.1", "add", 3 * VALUE, when=when)], **options)
    assert [list(one.ids) for [one] in found] == expected
    with any_subject.patched([Patch("resid_pre.1", "add", 3 * VALUE, when=when)]):
        assert [list(one.ids) for [one] in any_subject.generate(rows, **options)] == expected
        assert [list(one.ids) for [one] in any_subject.generate(rows, batch_tokens=1, **options)] == expected


def test_absolute_positions_and_rows_hold_while_decoding(tiny) -> None:
    """An edit of token 6 meets some rows in the prompt, others while decoding; rows drop out on the way."""
    subject, rows = tiny.subject("gpt2"), tiny.rows(8)
    patch = Patch("resid_pre.1", "set", 5 * VALUE, positions=[6], rows=[1, 2, 5, 7], when="every")

    def at(i: int):
        return lambda n, m: (
            [Patch("resid_pre.1", "set", 5 * VALUE, positions=[6])] if i in (1, 2, 5, 7) and m > 6 else []
        )

    free = [slow_greedy(subject, row, 10, at(i)) for i, row in enumerate(rows)]
    stops = {ids[i % 5] for i, ids in enumerate(free)}
    found = subject.generate(rows, patches=[patch], max_new_tokens=10, stop_ids=tuple(stops))
    for ids, [one] in zip(free, found, strict=True):
        cut = next((k + 1 for k, token in enumerate(ids) if token in stops), len(ids))
        assert list(one.ids) == ids[:cut]
    plain = subject.generate(rows, max_new_tokens=10, stop_ids=tuple(stops))
    assert found != plain


def test_transformers_own_generate_runs_under_edits(tiny) -> None:
    subject = tiny.subject("llama")
    rows = [[5, 9, 33, 2], [4, 4], [7, 1, 2]]
    batch = pad([TokenRow(tuple(r), tuple(r)) for r in rows], side="left")
    patches = [Patch("resid_pre.1", "add", 3 * VALUE, positions=[-1])]
    from transformers import GenerationConfig

    settings = GenerationConfig(do_sample=False, max_new_tokens=5, eos_token_id=None, pad_token_id=0)
    with subject.patched(patches):
        out = subject.model.generate(
            batch.input_ids, attention_mask=batch.attention_mask, generation_config=settings
        )
    found = subject.generate(rows, patches=patches, max_new_tokens=5, stop_ids=())
    assert out[:, 4:].tolist() == [list(one.ids) for [one] in found]


@pytest.mark.parametrize("site", ["resid_pre.1", "logits"])
def test_scores_and_logprobs_under_edits_equal_runs(any_subject, tiny, site) -> None:
    rows = tiny.rows(4)
    value = torch.linspace(-3, 3, 32 if site != "logits" else 300)
    patch = Patch(site, "add", value, positions=[-1])
    expected = [any_subject.run([row], patches=[patch]).logits[0, -1].log_softmax(-1) for row in rows]
    found = any_subject.logprobs(rows, patches=[patch])
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-4)
    scores = any_subject.score(rows, [[3]] * 4, patches=[patch])
    torch.testing.assert_close(scores, found[:, 3], rtol=1e-4, atol=1e-4)


def test_a_frozen_context_ignores_edits_of_it(any_subject) -> None:
    rows = [[5, 9, 33, 2], [4, 4, 8, 9]]
    plain = any_subject.run(rows, read=["resid_post.1"])
    frozen = any_subject.freeze_context(rows, until=2)
    edit = Patch("embed", "add", 5 * VALUE, positions=[0])
    held = any_subject.run(rows, patches=[edit, *frozen])
    torch.testing.assert_close(held.logits[:, 2:], plain.logits[:, 2:], rtol=1e-4, atol=1e-4)
    moved = any_subject.run(rows, patches=[edit])
    assert not torch.allclose(moved.logits[:, 2:], plain.logits[:, 2:], atol=1e-2)


# -- refusals


def test_patches_are_not_nested_and_reads_inside_see_them(tiny) -> None:
    subject = tiny.subject("gpt2")
    patch = Patch("resid_pre.1", "set", VALUE)
    with subject.patched([patch]):
        assert torch.equal(subject.run([[1]], read=["resid_pre.1"])["resid_pre.1"][0, 0], VALUE)
        assert torch.equal(subject.run([[1]], read=["resid_pre.1"])["resid_pre.1"][0, 0], VALUE)
        with pytest.raises(InputError, match="already active"):
            subject.run([[1]], patches=[patch])
        with pytest.raises(InputError, match="already runs under other patches"), subject.patched([patch]):
            pass
        with pytest.raises(InputError, match="already active"):
            subject.generate([[1]], patches=[patch])
    assert not torch.equal(subject.run([[1]], read=["resid_pre.1"])["resid_pre.1"][0, 0], VALUE)


def test_a_model_is_not_called_from_inside_its_own_pass(tiny) -> None:
    subject = tiny.subject("gpt2")

    def again(x: torch.Tensor) -> torch.Tensor:
        subject.run([[1, 2]])
        return x

    with pytest.raises(InputError, match="inside its own forward pass"):
        subject.run([[1, 2]], patches=[Patch("resid_pre.1", "fn", again)])
    assert bool(subject.run([[1, 2]]).logits.isfinite().all())


def test_another_thread_is_refused_while_patches_are_active(tiny) -> None:
    subject, said = tiny.subject("gpt2"), []

    def use() -> None:
        try:
            subject.logprobs([[1, 2]])
        except InputError as error:
            said.append(str(error))

    with subject.patched([Patch("resid_pre.1", "scale", 2.0)]):
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
    assert said and "one model per thread" in said[0]


@pytest.mark.parametrize(
    "arguments,message",
    [
        (("resid_pre.1", "mul", VALUE), "unknown operation 'mul'"),
        (("resid_pre.1", "fn", VALUE), "takes a function"),
        (("resid_pre.1", "add", len), "takes a function"),
        (("resid_pre", "add", VALUE), "needs a layer"),
    ],
)
def test_malformed_patches(arguments, message) -> None:
    with pytest.raises(InputError, match=message):
        Patch(*arguments)
    with pytest.raises(InputError, match="unknown phase"):
        Patch("resid_pre.1", "add", VALUE, when="later")


@pytest.mark.parametrize(
    "patch,message",
    [
        (
            Patch("resid_pre.1", "add", VALUE[:5]),
            r"value of shape \(5,\) does not fit activations of width 32",
        ),
        (Patch("resid_pre.1", "add", VALUE, positions=[2]), "a position lies outside row 1"),
        (Patch("resid_pre.1", "add", VALUE, positions=[-3]), "a position lies outside row 1"),
        (Patch("resid_pre.1", "add", VALUE, positions=[[0]] * 1 + [[0]], rows=None), ""),
        (Patch("resid_pre.1", "add", VALUE.expand(1, 32), positions=[0, 1]), "no entry for every row"),
        (Patch("resid_pre.1", "add", VALUE, positions=[[0], [1], [0]], rows=[0]), ""),
        (Patch("resid_pre.1", "fn", lambda x: x[..., :3]), "the function turned shape"),
        (Patch("resid_pre.1", "project_out", 2.0), "needs a direction"),
    ],
)
def test_patches_that_do_not_fit_the_batch(tiny, patch, message) -> None:
    subject, rows = tiny.subject("gpt2"), [[1, 2, 3], [4, 5]]
    if not message:
        assert bool(subject.run(rows, patches=[patch]).logits.isfinite().all())
        return
    with pytest.raises(InputError, match=message):
        subject.run(rows, patches=[patch])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in subject.model.modules())


def test_patterns_cannot_be_edited(tiny) -> None:
    with pytest.raises(AccessError, match="can be read, not edited"):
        tiny.subject("gpt2").run([[1]], patches=[Patch("pattern.0", "scale", 0.0)])
