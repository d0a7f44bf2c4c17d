"""Opening a model: one clear sentence for whatever cannot be opened, one identity for what can."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from glasshouse.runtime.errors import DeviceError, InputError, NumericalError, UnknownArchitecture
from glasshouse.subjects import Subject, as_subject, register_arch, register_resolver
from glasshouse.subjects.architectures import _REGISTERED, unwrap
from glasshouse.subjects.hashing import model_hash


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    """A saved Llama with its tokenizer; copy before breaking it."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    tiny.model("llama", vocab=300).save_pretrained(folder)
    tiny.tokenizer(chat=True).save_pretrained(folder)
    return folder


@pytest.fixture
def broken(saved, tmp_path):
    import shutil

    return shutil.copytree(saved, tmp_path / "broken")


def test_a_saved_model_opens_and_keeps_its_identity(tiny, saved) -> None:
    subject = as_subject(saved, device="cpu", dtype="fp32")
    assert (subject.name, subject.architecture, subject.is_chat) == ("model", "llama", True)
    assert (subject.n_layers, subject.d_model, subject.n_heads, subject.vocab_size) == (2, 32, 4, 300)
    assert subject.access == {"text", "logprobs", "activations", "gradients"}
    assert as_subject(subject) is subject
    in_memory = as_subject(tiny.model("llama", vocab=300), tokenizer=subject.tokenizer, self_test=False)
    assert in_memory.hash == subject.hash
    assert as_subject(saved, device="cpu", dtype="bf16", self_test=False).dtype == torch.bfloat16


def test_the_hash_sees_weights_config_tokenizer_and_dtype(tiny) -> None:
    model, tokenizer = tiny.model("gpt2"), tiny.tokenizer()
    first = model_hash(model, tokenizer)
    assert model_hash(tiny.model("gpt2"), tiny.tokenizer()) == first
    tokenizer(["a", "bcd"], padding=False, truncation=True, max_length=2)  # leaves its state behind
    assert model_hash(model, tokenizer) == first
    hashes = {first, model_hash(model), model_hash(model, tiny.tokenizer(chat=True))}
    hashes.add(model_hash(tiny.model("gpt2", dtype=torch.bfloat16), tokenizer))
    model.config.layer_norm_epsilon = 1e-3
    hashes.add(model_hash(model, tokenizer))
    model.config.layer_norm_epsilon = 1e-5
    with torch.no_grad():
        model.transformer.wpe.weight[3, 3] += 1e-6
    assert len(hashes | {model_hash(model, tokenizer)}) == 6


def refused(source, match: str, error: type = InputError, **options) -> None:
    with pytest.raises(error, match=match) as caught:
        as_subject(source, device=options.pop("device", "cpu"), **options)
    assert "\n" not in str(caught.value)


def test_wrong_paths(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused(tmp_path / "nowhere", "there is no folder")
    refused("some/model", "HF_HUB_OFFLINE forbids asking the hub")
    refused("planet://earth", "cannot open 'planet://earth'; give a folder")
    refused(tmp_path, "the folder has no config.json")


def test_broken_folders(broken) -> None:
    config = (broken / "config.json").read_text()
    (broken / "config.json").write_text("{")
    refused(broken, "cannot open the model")
    (broken / "config.json").write_text(json.dumps({**json.loads(config), "model_type": "no-such-family"}))
    refused(broken, "cannot open the model: .*no-such-family")
    (broken / "config.json").write_text(config)
    for file in broken.glob("tokenizer*"):
        file.unlink()
    refused(broken, "the folder has no tokenizer")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    refused(broken, "cannot open the model", tokenizer=object())
    weights.rename(broken / "pytorch_model.bin")
    refused(broken, "the weights are pickled, which can run code when read; save")
    (broken / "pytorch_model.bin").unlink()
    refused(broken, "the folder has no weights")


def test_missing_weights_are_not_filled_with_noise(broken) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(broken / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    refused(broken, "lacks 1 weights, model.layers.1.mlp.down_proj.weight first")


def test_code_in_a_checkpoint_is_not_run(broken) -> None:
    config = json.loads((broken / "config.json").read_text())
    config |= {
        "model_type": "stranger",
        "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"},
    }
    (broken / "config.json").write_text(json.dumps(config))
    (broken / "code.py").write_text("raise SystemExit('this ran')")
    refused(broken, "cannot open the model")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers(tiny, bad) -> None:
    model = tiny.model("gpt2")
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[0, 0] = bad
    refused(model, r"weight 'transformer.h.1.mlp.c_fc.weight': the weights hold NaN", NumericalError)


def test_devices_and_dtypes_are_obeyed_or_refused(saved) -> None:
    refused(saved, "not available", DeviceError, device="cuda:99")
    refused(saved, "not a number format", dtype="int3")


def test_resolvers_open_other_names(saved) -> None:
    register_resolver("thing", lambda name: (saved, {"who": name}))
    subject = as_subject("thing://one", device="cpu", self_test=False)
    assert (subject.name, subject.meta) == ("thing://one", {"who": "one"})


def test_wrappers_are_unwrapped(tiny) -> None:
    model = tiny.model("gpt2")
    assert unwrap(nn.DataParallel(model)) is model


def test_a_dispatched_model_is_the_same_model(tiny, tmp_path) -> None:
    """Accelerate replaces the forward of every module; reads, edits and generation go on as before."""
    from accelerate import dispatch_model

    rows = tiny.rows(4)
    for family in ("llama", "gpt2", "opt"):
        plain, model = tiny.subject(family), tiny.model(family, vocab=300)
        dispatch_model(model, {"": "cpu"}, force_hooks=True)
        subject = as_subject(model, tokenizer=plain.tokenizer)
        assert subject.hash == plain.hash
        assert torch.equal(subject.logprobs(rows), plain.logprobs(rows))
        found, expected = (s.run(rows, read=["z.1"], positions=[-1]) for s in (subject, plain))
        assert torch.equal(found["z.1"], expected["z.1"])
        [said], [same] = (s.generate(rows[:1], max_new_tokens=4)[0] for s in (subject, plain))
        assert said == same


def test_models_whose_weights_are_elsewhere(tiny, tmp_path) -> None:
    from accelerate import disk_offload

    model = tiny.model("llama")
    model.hf_device_map = {"model": 0, "lm_head": 1}
    refused(model, "the model is split over 0, 1 and stays there; leave device at auto")
    offloaded = disk_offload(tiny.model("llama"), tmp_path / "weights")
    refused(offloaded, "weight '.*': its values are not in memory", device="auto")


# -- architectures


class Stranger(nn.Module):
    """A model of no family in the table."""

    def __init__(self) -> None:
        super().__init__()
        self.config = type("Config", (), {"model_type": "stranger", "to_dict": lambda self: {}})()
        self.fc = nn.Linear(2, 2)


def test_an_unknown_model_lists_what_was_tried() -> None:
    refused(
        Stranger(),
        r"'stranger' is in no row of the table \(gpt2, gpt_neox.*does not show an output matrix; .*register",
        UnknownArchitecture,
    )


def test_a_family_can_be_registered(tiny) -> None:
    model = tiny.model("gpt2")
    model.body = model.transformer  # the same modules under another name, of another type
    del model.transformer
    model.config.model_type = "stranger"
    model.base_model_prefix = "body"
    with pytest.raises(UnknownArchitecture):
        as_subject(model)
    row = {
        "name": "stranger",
        "model_types": ["stranger"],
        "blocks": "body.h",
        "final_norm": "body.ln_f",
        "attention": "attn",
        "out_proj": "attn.c_proj",
        "qkv": ["attn.c_attn"],
        "qkv_layout": "blocks",
        "mlp": "mlp",
        "down_proj": "mlp.c_proj",
    }
    try:
        register_arch(row)
        assert as_subject(model, self_test=False).architecture == "stranger"
        for broken in ({**row, "colour": 1}, {"name": "x"}, {**row, "qkv_layout": "separate"}):
            with pytest.raises(InputError):
                register_arch(broken)
    finally:
        _REGISTERED.clear()


# -- self-test


def test_every_family_passes_in_both_formats(any_subject, tiny) -> None:
    result = any_subject.self_test()
    assert result.passed and len(result.checks) == 6 + any_subject.parts.has_mid
    assert Subject(tiny.model("llama", dtype=torch.bfloat16)).self_test().passed


@pytest.mark.parametrize(
    "change,failed",
    [
        ({"mlp": "attn"}, "embed [+] attn_out [+] mlp_out"),
        ({"mid_norm": "ln_1"}, "resid_mid is"),
        ({"final_norm": "transformer.h.0.ln_1"}, "unembed"),
    ],
)
def test_a_wrong_row_fails_the_self_test_and_is_named(tiny, change, failed) -> None:
    from dataclasses import replace

    from glasshouse.subjects.architectures import architectures

    model = tiny.model("gpt2")
    try:
        register_arch(replace(next(row for row in architectures() if row.name == "gpt2"), **change))
        with pytest.raises(UnknownArchitecture, match=f"self-test of 'gpt2' failed: .*{failed}"):
            as_subject(model)
    finally:
        _REGISTERED.clear()
    assert as_subject(model).self_test().passed  # the failure was not stored for the right row


def test_a_stored_self_test_is_not_run_again(tiny) -> None:
    subject = Subject(tiny.model("qwen2"))
    first = subject.self_test()
    passes: list[int] = []
    handle = subject.parts.base.register_forward_hook(lambda *_: passes.append(1))
    assert subject.self_test() == first
    handle.remove()
    assert not passes


def test_stories_pass_the_self_test(stories_folder) -> None:
    subject = as_subject(stories_folder, device="cpu")
    assert subject.self_test().passed and not subject.is_chat


def test_subjects_load_neither_trl_nor_peft() -> None:
    code = "import sys, glasshouse.subjects; print(sorted({m.split('.')[0] for m in sys.modules}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in ("trl", "peft", "transformers", "pandas", "scipy"):
        assert f"'{heavy}'" not in out
