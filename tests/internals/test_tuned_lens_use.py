"""Tuned lenses in use: what may not matter does not, saved is kept, killed goes on, wrong is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from glasshouse.corpora.rows import TokenRow, pad
from glasshouse.internals.tuned_lens import (
    LogitLens,
    Trajectory,
    TunedLens,
    chunked,
    evaluate,
    fidelity,
    invert,
    layer_ablation,
    layer_transfer,
    response_alignment,
    subspace_ablation,
)
from glasshouse.internals.tuned_lens.published import published_hash, torch_tensors
from glasshouse.runtime.errors import AccessError, InputError, NumericalError, RunError, StaleError

SHORT = {"steps": 4, "tokens_per_step": 40, "lr_scale": 0.5}


def _lens(subject, rows, **options) -> TunedLens:
    return TunedLens(**{**SHORT, **options}).fit(subject, rows)


def _far(a: TunedLens, b: TunedLens) -> float:
    return float(max((a.weight_ - b.weight_).abs().max(), (a.bias_ - b.bias_).abs().max()))


# -- invariances ---------------------------------------------------------------------------------------------


def test_every_family_trains_and_ends_where_the_model_does(tiny, any_family):
    """KL falls at every layer on the rows trained on, and the last layer's lens is the model itself."""
    subject, rows = tiny.subject(any_family), tiny.rows(12)
    lens = _lens(subject, rows, steps=30, opt="adam", lr_scale=5.0)
    before, after = (evaluate(one, subject, rows) for one in (LogitLens().fit(subject), lens))
    run = subject.run([rows[0]], read=["final_norm_in"])
    assert torch.allclose(lens.final_logits(run["final_norm_in"]), run.logits, rtol=1e-3, atol=1e-3)
    for layer in range(subject.n_layers):
        assert after.estimate("kl", layer, first=True).value < before.estimate("kl", layer, first=True).value


def test_rows_batches_padding_and_caching_change_nothing(tiny):
    """The order of rows not at all; how they are cut into batches, and keeping states, by rounding only."""
    subject, rows = tiny.subject("gpt2"), tiny.rows(12)
    one = _lens(subject, rows)
    assert _far(one, _lens(subject, rows[::-1])) == 0
    left = pad([TokenRow(tuple(r), tuple(r)) for r in rows], side="left")
    assert _far(one, _lens(subject, left)) == 0
    ids, mask = left.input_ids, left.attention_mask
    t = Trajectory.from_lens(one, subject, ids, attention_mask=mask)
    same = Trajectory.from_lens(one, subject, rows)
    assert torch.allclose(t.kl(), same.kl(), equal_nan=True, atol=1e-5)
    scale = float(one.weight_.abs().max())
    assert _far(one, _lens(subject, rows, batch_tokens=16)) < 1e-4 * scale
    assert _far(one, _lens(subject, rows, cache_bytes=0)) < 1e-4 * scale


def test_without_a_clip_layers_train_independently(tiny, monkeypatch):
    """Without a clip a layer's translator does not depend on the other layers' states; with one it does."""
    subject, rows = tiny.subject("llama"), tiny.rows(12)
    real = subject.run

    def louder(*args, **options):
        found = real(*args, **options)
        for site in found.acts:
            if site.kind == "resid_pre" and site.layer == 0:
                found.acts[site] = 2 * found.acts[site] + 1
        return found

    pairs = []
    for clip in (None, 0.1):
        alone = _lens(subject, rows, clip=clip)
        with monkeypatch.context() as patch:
            patch.setattr(subject, "run", louder)
            beside = _lens(subject, rows, clip=clip)
        pairs.append((alone.weight_[1], beside.weight_[1]))
    assert torch.equal(*pairs[0])
    assert not torch.equal(*pairs[1])


def test_bfloat16_follows_float32(tiny):
    rows = tiny.rows(12)
    kl = []
    for dtype in (torch.float32, torch.bfloat16):
        subject = tiny.subject("llama", dtype)
        found = evaluate(_lens(subject, rows, steps=20, opt="adam"), subject, rows)
        kl.append([found.estimate("kl", k).value for k in range(2)])
    assert kl[1] == pytest.approx(kl[0], rel=0.05)


@pytest.mark.parametrize(
    "option",
    [
        {"loss": "ce"}, {"steps": 5}, {"tokens_per_step": 60}, {"opt": "adam"}, {"lr_scale": 0.7},
        {"momentum": 0.8}, {"weight_decay": 0.5}, {"clip": 0.01}, {"bias_only": True}, {"skip_first": 1},
        {"seed": 1},
    ],
    ids=lambda option: next(iter(option)),
)  # fmt: skip
def test_every_option_changes_the_lens(tiny, option):
    subject, rows = tiny.subject("gpt2"), tiny.rows(12)
    changed = _lens(subject, rows, **option)
    assert _far(_lens(subject, rows), changed) > 1e-5
    assert bool(changed.weight_.any()) != ("bias_only" in option)


def test_weight_decay_pulls_to_the_logit_lens(tiny):
    subject, rows = tiny.subject("gpt2"), tiny.rows(12)
    far, near = (_lens(subject, rows, weight_decay=w, steps=20).weight_.norm() for w in (0.0, 5.0))
    assert near < 0.7 * far


def test_a_warm_start_begins_where_the_other_lens_ended(tiny):
    subject, rows = tiny.subject("gpt2"), tiny.rows(12)
    first = _lens(subject, rows, steps=30, opt="adam")
    again = TunedLens(**{**SHORT, "lr_scale": 1e-6, "steps": 1}).fit(subject, rows, start=first)
    assert _far(first, again) < 1e-5
    with pytest.raises(InputError, match="to start from"):
        TunedLens(**SHORT).fit(subject, rows, start=_wider())


def _wider() -> TunedLens:
    lens = TunedLens()
    lens.head_, lens.weight_, lens.bias_ = object(), torch.zeros(3, 4, 4), torch.zeros(3, 4)
    return lens


def test_a_frozen_copy_outlives_training_of_the_model(tiny):
    from glasshouse.subjects import as_subject

    subject = as_subject(tiny.model("gemma2"), self_test=False)  # tied embeddings, soft cap, scaled inputs
    lens, h = LogitLens().fit(subject), torch.randn(3, 32)
    before = lens.logits(h, 0)
    with torch.no_grad():
        for p in subject.model.parameters():
            p.mul_(2)
    assert torch.equal(lens.logits(h, 0), before)


# -- disk ----------------------------------------------------------------------------------------------------


def test_a_killed_training_ends_in_the_same_bytes(tiny, tmp_path, faults, monkeypatch):
    from glasshouse.internals.tuned_lens import training

    monkeypatch.setattr(training, "SNAPSHOT_EVERY", 2)
    subject, rows = tiny.subject("gpt2"), tiny.rows(12)
    for opt in ("sgd", "adam"):
        options = {**SHORT, "steps": 7, "opt": opt}
        whole = TunedLens(**options).fit(subject, rows)
        passed = faults.at()
        TunedLens(**options).fit(subject, rows, store=tmp_path / opt / "whole")
        faults.off()
        for n in range(1, len(passed) + 1):
            store = tmp_path / opt / str(n)
            faults.at(n)
            with pytest.raises(faults.Killed):
                TunedLens(**options).fit(subject, rows, store=store)
            faults.off()
            resumed = TunedLens(**options).fit(subject, rows, store=store)
            assert torch.equal(resumed.weight_, whole.weight_) and torch.equal(resumed.bias_, whole.bias_)
            assert torch.equal(resumed.losses_, whole.losses_)
    with pytest.raises(StaleError, match="rows differ"):
        TunedLens(**options).fit(subject, rows[:9], store=tmp_path / "adam" / "whole")


def test_results_come_back_from_disk(tiny, tmp_path):
    subject, rows = tiny.subject("opt"), tiny.rows(6)
    lens = _lens(subject, rows)
    again = TunedLens.load(lens.save(tmp_path / "lens"), subject)
    assert _far(lens, again) == 0 and torch.equal(lens.losses_, again.losses_)
    LogitLens.load(LogitLens().fit(subject).save(tmp_path / "logit"), subject)
    t = Trajectory.from_lens(lens, subject, rows)
    assert Trajectory.load(t.save(tmp_path / "t")).to_frame().equals(t.to_frame())
    e = evaluate(lens, subject, rows)
    assert type(e).load(e.save(tmp_path / "e")).to_frame().equals(e.to_frame())
    found = layer_transfer(lens, subject, rows)
    assert torch.equal(type(found).load(found.save(tmp_path / "x")).kl, found.kl)


def test_a_lens_of_another_model_is_refused_by_name(tiny, tmp_path):
    lens = _lens(tiny.subject("gpt2"), tiny.rows(6)).save(tmp_path / "lens")
    with pytest.raises(StaleError, match=r"GPT2LMHeadModel.*LlamaForCausalLM"):
        TunedLens.load(lens, tiny.subject("llama"))
    with pytest.raises(InputError, match="holds a TunedLens"):
        LogitLens.load(lens, tiny.subject("gpt2"))


def _published(folder, subject, *, d_model=None, unembed_hash=None):
    folder.mkdir(parents=True)
    draw = torch.Generator().manual_seed(0)
    state = {}
    for layer in range(subject.n_layers):
        state[f"{layer}.weight"] = torch.randn(subject.d_model, subject.d_model, generator=draw)
        state[f"{layer}.bias"] = torch.randn(subject.d_model, generator=draw)
    config = {
        "base_model_name_or_path": "their/model", "d_model": d_model or subject.d_model,
        "num_hidden_layers": subject.n_layers, "unembed_hash": unembed_hash or published_hash(subject),
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return state


def test_published_files_are_read_without_unpickling(tiny, tmp_path):
    subject = tiny.subject("gpt_neox")
    for name, dtype in (("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)):
        state = {k: v.to(dtype) for k, v in _published(tmp_path / name, subject).items()}
        layers = torch.nn.ModuleList([torch.nn.Linear(32, 32) for _ in range(2)]).to(dtype)
        layers.load_state_dict(state)
        torch.save(layers.state_dict(), tmp_path / name / "params.pt")
        lens = TunedLens.load_hf(tmp_path, subject, name)
        assert torch.equal(lens.weight_[1], state["1.weight"].float())
        assert torch.equal(lens.bias_[0], state["0.bias"].float())
    with pytest.raises(StaleError, match=r"their/model.*GPTNeoX"):
        _published(tmp_path / "other", subject, unembed_hash="0" * 64)
        TunedLens.load_hf(tmp_path / "other", subject)
    with pytest.raises(StaleError, match=r"their/model.*GPTNeoX"):
        _published(tmp_path / "wide", subject, d_model=33)
        TunedLens.load_hf(tmp_path / "wide", subject)
    with pytest.raises(InputError, match="no such folder"):
        TunedLens.load_hf(tmp_path, subject, "absent")


class _Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('the file was obeyed')",))


def test_a_hostile_published_file_runs_nothing(tmp_path):
    torch.save({"0.weight": torch.zeros(2), "x": _Evil()}, tmp_path / "evil.pt")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "list.pt").read_bytes()[:200])
    for name, told in (("evil", "asks to call"), ("list", "dictionary of tensors"), ("cut", "zip")):
        with pytest.raises(InputError, match=told):
            torch_tensors(tmp_path / f"{name}.pt")


def test_damaged_lenses_are_refused(tiny, tmp_path):
    subject = tiny.subject("gpt2")
    lens = _lens(subject, tiny.rows(6))
    (lens.save(tmp_path / "a") / "lens.safetensors").write_bytes(b"short")
    with pytest.raises(RunError, match="damaged"):
        TunedLens.load(tmp_path / "a", subject)
    lens.weight_[1, 0, 0] = torch.nan
    with pytest.raises(NumericalError, match="NaN"):
        TunedLens.load(lens.save(tmp_path / "b"), subject)


# -- bad input -----------------------------------------------------------------------------------------------


def test_states_that_are_no_layers_are_refused(tiny):
    lens = LogitLens().fit(tiny.subject("gpt2"))
    for layer, told in ((2, r"hidden_states\[-1\]"), (3, "layers 0 to 1"), (-1, "layers 0 to 1")):
        with pytest.raises(InputError, match=told):
            lens.logits(torch.zeros(4, 32), layer)
    with pytest.raises(InputError, match="width 32"):
        lens.logits(torch.zeros(4, 31), 0)
    with pytest.raises(NumericalError, match="NaN"):
        lens.logits(torch.full((4, 32), torch.nan), 0)
    with pytest.raises(InputError, match="knows no model"):
        TunedLens().logits(torch.zeros(4, 32), 0)


def test_output_embeddings_that_are_no_matrix_are_refused(tiny):
    from glasshouse.subjects import as_subject

    class Bent(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x).sigmoid()

    model = tiny.model("llama")
    model.lm_head = Bent(32, 64, bias=False)
    with pytest.raises(AccessError, match=r"'lm_head' is a Bent"):
        LogitLens().fit(as_subject(model, self_test=False))
    model = tiny.model("llama")
    model.model.norm = torch.nn.Identity()
    with pytest.raises(AccessError, match=r"'model.norm' is no final norm"):
        LogitLens().fit(as_subject(model, self_test=False))


@pytest.mark.parametrize(
    ("tokens", "told"),
    [
        ([], "no rows"), ([[]], "no tokens"), ([[999]], "outside the vocabulary"), ([[1] * 65], "context"),
        (torch.zeros(2, 3), "integers"), (torch.zeros(3, dtype=torch.long), "integers"), ([[4]], "no row is"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_trained_on_are_refused(tiny, tokens, told):
    with pytest.raises(InputError, match=told):
        _lens(tiny.subject("gpt2"), tokens, skip_first=1)


def test_a_padded_tensor_needs_its_mask(tiny):
    from glasshouse.subjects import as_subject

    tokenizer = tiny.tokenizer()
    tokenizer.pad_token_id = 1
    subject = as_subject(tiny.model("gpt2", vocab=300), tokenizer=tokenizer, self_test=False)
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 1, 1]])
    with pytest.raises(InputError, match="padding and there is no mask"):
        _lens(subject, ids)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    assert len(Trajectory.from_lens(LogitLens().fit(subject), subject, ids, attention_mask=mask)) == 2


@pytest.mark.parametrize(
    "option",
    [{"loss": "mse"}, {"steps": 0}, {"opt": "lion"}, {"lr_scale": 0.0}, {"momentum": 1.0}, {"clip": 0.0},
     {"weight_decay": -1.0}, {"tokens_per_step": 0}, {"skip_first": -1}, {"batch_tokens": 0}],
)  # fmt: skip
def test_bad_options_are_refused_by_name(tiny, option):
    with pytest.raises(InputError, match=next(iter(option))):
        _lens(tiny.subject("gpt2"), tiny.rows(3), **option)


def test_a_loss_that_diverges_is_said(tiny):
    with pytest.raises(NumericalError, match="lower lr_scale"):
        _lens(tiny.subject("gpt2"), tiny.rows(6), lr_scale=1e38, clip=None, steps=8)


def test_texts_are_joined_by_the_end_token_and_cut(tiny):
    """Plain text, no chat template, the short rest dropped; less than one row is refused."""
    from glasshouse.subjects import as_subject

    chat = as_subject(tiny.model("gpt2", vocab=300), tokenizer=tiny.tokenizer(chat=True), self_test=False)
    plain = tiny.subject("gpt2")
    a, b = plain.encode("abc"), plain.encode("other things")
    flow = [*a, 1, *b, 1]
    for subject in (plain, chat):
        assert chunked(subject, ["abc", "other things"], 4) == [
            flow[k : k + 4] for k in range(0, len(flow) - 3, 4)
        ]
    with pytest.raises(InputError, match="less than one row of 64"):
        chunked(plain, ["abc"], 4000)


# -- trajectories --------------------------------------------------------------------------------------------


def test_a_trajectory_is_the_definition(tiny):
    subject, rows = tiny.subject("llama"), tiny.rows(5)
    lens = _lens(subject, rows)
    t = Trajectory.from_lens(lens, subject, rows, anti_targets=7)
    index = max(range(5), key=lambda i: len(rows[i]))
    row = rows[index]
    acts = subject.run([row], read=["resid_pre.0", "resid_pre.1", "final_norm_in"]).acts
    h = [value[0] for value in acts.values()]
    logs = torch.stack([lens.logits(h[0], 0), lens.logits(h[1], 1), lens.final_logits(h[2])]).log_softmax(-1)
    n, mean = len(row), ((logs.exp() + logs[2].exp()) / 2).log()
    kl = (logs[2].exp() * (logs[2] - logs)).sum(-1)
    js = ((logs.exp() * (logs - mean)).sum(-1) + (logs[2].exp() * (logs[2] - mean)).sum(-1)) / 2
    target = torch.tensor(row[1:])
    own = logs[:, torch.arange(n - 1), target]
    close = {"rtol": 1e-3, "atol": 1e-5}
    assert torch.allclose(t.kl()[index, :, :n], kl, **close)
    assert torch.allclose(t.js()[index, :, :n], js, **close)
    assert torch.allclose(t.target()[index, :, : n - 1], own, **close)
    assert torch.allclose(t.margin()[index, :, : n - 1], own - logs[:, : n - 1, 7], **close)
    assert torch.equal(t.rank()[index, :, : n - 1], (logs[:, : n - 1] > own[..., None]).sum(-1))
    assert torch.allclose(t.adjacent()[index, 0, :n], (logs[1].exp() * (logs[1] - logs[0])).sum(-1), **close)
    assert torch.isnan(t.target()[index, :, n - 1]).all() and (t.rank()[index, :, n - 1] == -1).all()
    assert torch.equal(t.top_ids_[index, :, :n, 0], logs.argmax(-1))
    assert float(t.js().nan_to_num().max()) <= np.log(2) and float(t.compare(t).nan_to_num().max()) < 1e-6


def test_prediction_depth_is_where_the_top_token_settles(tiny):
    subject, rows = tiny.subject("llama"), tiny.rows(8)
    t = Trajectory.from_lens(LogitLens().fit(subject), subject, rows)
    for i, row in enumerate(rows):
        for j in range(len(row)):
            tops = t.argmax_[i, :, j].tolist()
            assert t.depth()[i, j] == next(k for k in range(3) if all(x == tops[2] for x in tops[k:]))
    assert (t.depth()[~t.mask] == -1).all()


def test_a_subset_of_positions_layers_and_tokens_is_a_part_of_the_whole(tiny):
    subject, rows = tiny.subject("gpt2"), tiny.rows(5)
    lens = LogitLens().fit(subject)
    whole = Trajectory.from_lens(lens, subject, rows)
    part = Trajectory.from_lens(lens, subject, rows, positions=[-1], vocab_subset=[9, 4], layers=[1])
    for i, row in enumerate(rows):
        assert torch.equal(part.log_probs[i, :, 0], whole.log_probs[i, 1:, len(row) - 1][:, [9, 4]])
        assert torch.equal(part.kl()[i, :, 0], whole.kl()[i, 1:, len(row) - 1])
    other = Trajectory.from_lens(
        lens, subject, [[r[0], *r[1:-1], 3] for r in rows], positions=[-1], layers=[1]
    )
    full = Trajectory.from_lens(lens, subject, rows, positions=[-1], layers=[1]).compare(other)
    few = part.compare(
        Trajectory.from_lens(
            lens,
            subject,
            [[r[0], *r[1:-1], 3] for r in rows],
            positions=[-1],
            vocab_subset=[9, 4],
            layers=[1],
        )
    )
    assert (few <= full + 1e-5).all()  # tokens taken together can only hide differences
    for bad in ({"positions": [99]}, {"vocab_subset": [999]}, {"layers": [7]}, {"targets": [1, 2]}):
        with pytest.raises(InputError):
            Trajectory.from_lens(lens, subject, rows, **bad)
    with pytest.raises(InputError, match="same rows"):
        whole.compare(part)


def test_the_heat_map_shows_tokens_and_is_harmless(tiny):
    subject = tiny.subject("gpt2")
    t = Trajectory.from_lens(LogitLens().fit(subject), subject, [[70, 71, 72]])
    figure = t.plot(0, "kl", lambda i: "<b>\x1b[31m")
    assert [list(map(float, line)) for line in figure.data[0].z] == t.kl()[0].double().tolist()
    assert "<b>" not in str(figure.data[0].text) and "\x1b" not in str(figure.data[0].text)
    assert len(figure.data[0].customdata[0][0].split("<br>")) == 5
    with pytest.raises(InputError, match="no value"):
        t.plot(0, "surprise")


# -- causal tools --------------------------------------------------------------------------------------------


def test_ablations_do_what_they_say(tiny):
    subject, rows = tiny.subject("llama"), tiny.rows(6)
    A = torch.linalg.qr(torch.randn(32, 3, generator=torch.Generator().manual_seed(0))).Q
    site = "resid_pre.1"
    real = subject._batch(rows).attention_mask.bool()
    plain = subject.run(rows, read=[site])[site][real]
    for mode in ("zero", "mean", "resample"):
        with subspace_ablation(subject, 1, A @ torch.diag(torch.tensor([1.0, 2.0, 3.0])), mode):
            edited = subject.run(rows, read=[site])[site][real]
        assert torch.allclose(edited - edited @ A @ A.T, plain - plain @ A @ A.T, atol=1e-4)
        inside = edited @ A
        if mode == "zero":
            assert inside.abs().max() < 1e-4
        if mode == "mean":
            assert torch.allclose(inside, (plain @ A).mean(0).expand_as(inside), atol=1e-4)
        if mode == "resample":
            near = torch.cdist(inside, plain @ A).argmin(1)
            assert (near != torch.arange(len(plain))).all() and len(near.unique()) == len(plain)
    with layer_ablation(subject, 1, "zero"):
        acts = subject.run(rows, read=[site, "resid_post.1"])
    assert torch.equal(acts[site][real], acts["resid_post.1"][real])
    with pytest.raises(InputError, match="dependent"), subspace_ablation(subject, 1, torch.ones(32, 2)):
        pass
    with pytest.raises(InputError, match="mode"), layer_ablation(subject, 1, "half"):
        pass


def test_where_a_layer_is_followed_by_identities_lens_and_model_agree(tiny):
    """Fidelity is 1 by construction when the last block adds nothing, and so is the response's similarity."""
    from glasshouse.subjects import as_subject

    model = tiny.model("llama", vocab=64)
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
        model.model.layers[1].mlp.down_proj.weight.zero_()
    subject = as_subject(model, self_test=False)
    rows = [[i % 64 for i in row] for row in tiny.rows(8)]
    lens = LogitLens().fit(subject)
    found = fidelity(lens, subject, rows, layers=[1], k=8)
    assert found.rho(1).value == pytest.approx(1.0) and found.rho(1, "random").value == pytest.approx(1.0)
    assert torch.allclose(found.at_lens, found.at_model, rtol=1e-3, atol=1e-5)
    A = torch.eye(32)[:, :2]
    assert response_alignment(lens, subject, rows, 1, A).estimate().value == pytest.approx(1.0, abs=1e-3)
    assert response_alignment(lens, subject, rows, 0, A).estimate().value < 0.99


def test_inversion_finds_states_for_reachable_logits(tiny):
    lens = LogitLens().fit(tiny.subject("gpt2"))
    h = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    found = invert(lens.head_, lens.final_logits(h))
    assert found.kl.max() < 1e-3
    near = invert(lens.head_, lens.final_logits(h), prior=h, prior_weight=1.0, h0=h + 0.1)
    assert (near.h - h).norm() < 0.1
    with pytest.raises(InputError, match="vocabulary"):
        invert(lens.head_, torch.zeros(3, 5))
