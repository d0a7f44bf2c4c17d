"""Families with traps of their own, and models of no family: what is found must be right or refused."""

import pytest
import torch

from glasshouse.corpora.rows import TokenRow, pad
from glasshouse.runtime.errors import AccessError, InputError, UnknownArchitecture
from glasshouse.subjects import Patch, as_subject
from glasshouse.subjects.probing import probe

SMALL = {
    "vocab_size": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
    "initializer_range": 0.3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


def random_model(config: str, **options):
    import transformers as t

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return t.AutoModelForCausalLM.from_config(getattr(t, config)(**{**SMALL, **options})).eval()


# -- models of the table


def test_every_family_passes_its_self_test_in_bf16(any_family, tiny) -> None:
    subject = tiny.subject(any_family, torch.bfloat16)
    assert subject.parts.known
    assert subject.self_test().failed == ()


def test_the_wrong_terms_of_a_post_norm_family_fail(tiny) -> None:
    """With the attention itself for its normed output the residuals would not add up."""
    from dataclasses import replace

    from glasshouse.subjects.architectures import _REGISTERED, architectures, register_arch

    try:
        row = next(row for row in architectures() if row.name == "gemma2")
        register_arch(replace(row, attn_out=None))
        with pytest.raises(UnknownArchitecture, match=r"resid_mid is .* embed [+] attn_out"):
            as_subject(tiny.model("gemma2"))
    finally:
        _REGISTERED.clear()


@pytest.mark.parametrize("family", ["mistral", "phi3", "gemma2", "gemma3"])
def test_rows_longer_than_the_window(tiny, family) -> None:
    """Windows of 8: prompts of 20 to 40 tokens, generated, padded and continued from a shared prompt."""
    from transformers import GenerationConfig

    subject, rows = tiny.subject(family), tiny.rows(4, seed=5, low=20, high=40)
    settings = GenerationConfig(do_sample=False, max_new_tokens=20, eos_token_id=1, pad_token_id=0)
    for row, [one] in zip(rows, subject.generate(rows, max_new_tokens=20), strict=True):
        ids = torch.tensor([row])
        plain = subject.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        assert list(one.ids) == plain[0, len(row) :].tolist()
    alone = [subject.run([row], read=["resid_post.1"]) for row in rows]
    for side in ("left", "right"):
        batch = pad([TokenRow(tuple(r), tuple(r)) for r in rows], side=side)
        together = subject.run(batch, read=["resid_post.1"])
        for i, one in enumerate(alone):
            real = batch.attention_mask[i].bool()
            found = together["resid_post.1"][i][real]
            torch.testing.assert_close(found, one["resid_post.1"][0], rtol=1e-4, atol=1e-4)
    # Long enough that the prompt is run once and its cache repeated.
    prompts, completions = [max(rows, key=len)] * 12, tiny.rows(12, seed=6, low=1, high=14)
    found = subject.score(prompts, completions)
    for prompt, completion, score in zip(prompts, completions, found, strict=True):
        logits = subject.run([[*prompt, *completion]]).logits[0].log_softmax(-1)
        each = [logits[len(prompt) - 1 + j, token] for j, token in enumerate(completion)]
        assert float(score) == pytest.approx(float(sum(each)), rel=1e-4, abs=1e-3)


def test_the_window_matters(tiny) -> None:
    """The null case of the test above: a token outside every window changes nothing, one inside does."""
    subject, row = tiny.subject("mistral"), tiny.rows(1, low=40, high=41)[0]
    before = subject.logprobs([row])
    assert torch.equal(subject.logprobs([[row[0] + 1, *row[1:]]]), before)  # 2 layers of 8 see 15 tokens
    assert not torch.allclose(subject.logprobs([[*row[:-6], 5, *row[-5:]]]), before, atol=1e-3)


def test_soft_capped_logits(tiny) -> None:
    subject = tiny.subject("gemma2")
    run = subject.run([[5, 9, 33]], read=["logits", "final_norm_in"])
    torch.testing.assert_close(run.logits, torch.tanh(run["logits"] / 3) * 3)
    assert float(run.logits.abs().max()) <= 3 < float(run["logits"].abs().max())
    torch.testing.assert_close(subject.unembed(run["final_norm_in"], [4, 7]), run.logits[..., [4, 7]])
    patch = Patch("logits", "add", torch.eye(300)[7] * 100)
    found = subject.run([[5, 9, 33]], patches=[patch]).logits
    torch.testing.assert_close(found[..., 7], torch.full((1, 3), 3.0))


def test_edits_reach_opt_through_its_flattened_mlp(tiny) -> None:
    """Positions and rows of an edit are those of the unpadded row although OPT flattens both around fc2."""
    subject, rows = tiny.subject("opt"), [[5, 9, 33, 7], [4, 2]]
    for side in ("left", "right"):
        batch = pad([TokenRow(tuple(r), tuple(r)) for r in rows], side=side)
        patch = Patch("mlp_act.1", "set", torch.zeros(48), positions=[1], rows=[1])
        before, after = subject.run(batch), subject.run(batch, read=["mlp_act.1"], patches=[patch])
        changed = (before.logits - after.logits).abs().amax(-1) > 1e-6
        assert changed.nonzero().tolist() == [[1, 1 if side == "right" else 3]]


def test_clipped_projections_are_read_as_they_were_made(tiny) -> None:
    subject = tiny.subject("olmo")
    run = subject.run([[5, 9, 33]], read=["resid_pre.0", "v.0"])
    block = subject.parts.blocks[0]
    expected = block.self_attn.v_proj(block.input_layernorm(run["resid_pre.0"]))
    torch.testing.assert_close(run["v.0"].flatten(-2), expected.detach())
    assert float(run["v.0"].abs().max()) > 1.5
    graph = subject.run([[5, 9, 33]], read=["v.0"], grad=True)
    [grad] = torch.autograd.grad(graph.logits.sum(), [graph["v.0"]])
    assert bool((grad[graph["v.0"].abs() > 1.5] == 0).all()) and float(grad.abs().max()) > 0


def test_gemma_3_with_images_is_read_through_its_text_part() -> None:
    import transformers as t

    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    options = {**SMALL, "head_dim": 16, "num_key_value_heads": 2, "sliding_window": 8}
    config = t.Gemma3Config(
        text_config=t.Gemma3TextConfig(**options),
        vision_config={**vision, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        subject = as_subject(t.AutoModelForCausalLM.from_config(config).eval())
    assert (subject.architecture, subject.n_layers, subject.vocab_size) == ("gemma3", 2, 64)


@pytest.mark.parametrize(
    "config,options,message",
    [
        (
            "OPTConfig",
            {"do_layer_norm_before": False, "ffn_dim": 48},
            "a opt model with do_layer_norm_before=False is not supported: it normalises the residual stream",
        ),
        (
            "Gemma3TextConfig",
            {"use_bidirectional_attention": True, "head_dim": 16},
            "use_bidirectional_attention=True is not supported: it attends to later tokens",
        ),
    ],
)
def test_members_of_a_family_that_are_refused(config, options, message) -> None:
    with pytest.raises(UnknownArchitecture, match=message):
        as_subject(random_model(config, **options))


def test_a_rotary_table_that_grows_limits_the_context() -> None:
    """Dynamic tables depend on the longest row of the batch once it passes the trained length."""
    rope = {
        "rope_type": "dynamic",
        "factor": 2.0,
        "rope_theta": 1e4,
        "original_max_position_embeddings": 16,
    }
    subject = as_subject(random_model("LlamaConfig", rope_parameters=rope))
    assert subject.context == 16
    with pytest.raises(InputError, match="context holds 16"):
        subject.logprobs([[5] * 17])


# -- models of no row


def test_the_structure_alone_gives_the_row_of_the_table(any_model) -> None:
    from glasshouse.subjects.architectures import locate

    row, found = locate(any_model).architecture, probe(any_model, "stranger")
    same = (
        "blocks",
        "final_norm",
        "attention",
        "out_proj",
        "qkv",
        "qkv_layout",
        "mlp",
        "down_proj",
        "unembed",
    )
    assert {name: getattr(found, name) for name in same} == {name: getattr(row, name) for name in same}
    assert (found.attn_out, found.mlp_out) == (row.attn_out, row.mlp_out)
    parallel = row.parallel_flag and getattr(any_model.config, row.parallel_flag)
    assert found.mid_norm == (None if parallel else row.mid_norm)


STRANGERS = {
    "phi: parallel": ("PhiConfig", {}),
    "glm4: norms on both sides": ("Glm4Config", {"num_key_value_heads": 2}),
    "olmo3: windows, norms behind": ("Olmo3Config", {"sliding_window": 8, "num_key_value_heads": 2}),
    "bigcode: fused, one key head": ("GPTBigCodeConfig", {}),
    "gpt_neo: windows, learned positions": (
        "GPTNeoConfig",
        {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 8},
    ),
    "persimmon: fused by head": ("PersimmonConfig", {}),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_a_model_of_no_row_opens_by_its_structure(name, tiny) -> None:
    config, options = STRANGERS[name]
    subject = as_subject(random_model(config, **options), self_test=False)  # not to be skipped for these
    assert not subject.parts.known and subject.self_test().passed
    assert "pattern @ v is z" in {check.name for check in subject.self_test().checks}


@pytest.mark.parametrize(
    "config,options,message",
    [
        ("CohereConfig", {}, "self-test of 'cohere' failed: unembed"),  # scales its logits
        ("GraniteConfig", {"residual_multiplier": 0.5}, "does not show two terms that a block adds"),
        ("CodeGenConfig", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}, "pattern @ v is z"),
        ("MixtralConfig", {"num_key_value_heads": 2}, "does not show an MLP in its blocks"),
    ],
)
def test_a_structure_that_means_something_else_is_refused(config, options, message) -> None:
    with pytest.raises(AccessError, match=message):
        as_subject(random_model(config, **options), self_test=False)
