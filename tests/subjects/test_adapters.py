"""Adapters: the subject is the model with its adapter, opened from memory or from the adapter's folder."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, TaskType, get_peft_model

from glasshouse.runtime.errors import InputError, UnknownArchitecture
from glasshouse.subjects import as_subject
from glasshouse.subjects.capture import Capture, as_parameters, describe_modules

TARGETS = {
    "gpt2": ["c_attn", "c_fc"],
    "llama": ["q_proj", "v_proj", "down_proj"],
    "phi3": ["qkv_proj", "gate_up_proj"],
    "opt": ["q_proj", "fc1", "fc2"],
    "gptj": ["v_proj", "fc_in"],
}


def adapted(tiny, family: str, *, dtype: torch.dtype = torch.float32, **options):
    """A model with a random LoRA of rank 4."""
    config = LoraConfig(
        r=4,
        target_modules=TARGETS[family],
        init_lora_weights=False,
        fan_in_fan_out=family == "gpt2",
        task_type=TaskType.CAUSAL_LM,
        **options,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return get_peft_model(tiny.model(family, vocab=300, dtype=dtype), config).eval()


@pytest.fixture(scope="module")
def folders(tiny, tmp_path_factory):
    """A base model with its tokenizer, and an adapter that names it."""
    root = tmp_path_factory.mktemp("adapters")
    tiny.model("llama", vocab=300).save_pretrained(root / "base")
    tiny.tokenizer(chat=True).save_pretrained(root / "base")
    model = adapted(tiny, "llama")
    model.peft_config["default"].base_model_name_or_path = str(root / "base")
    model.save_pretrained(root / "adapter")
    return root


@pytest.mark.parametrize("family", TARGETS)
def test_reads_edits_and_generation_are_those_of_the_adapted_model(tiny, family) -> None:
    plain, model = tiny.subject(family), adapted(tiny, family)
    subject = as_subject(model)  # its self-test compares with the adapted model itself
    rows = tiny.rows(4)
    assert subject.architecture == plain.architecture and subject.hash != plain.hash
    with torch.no_grad():
        expected = [model(input_ids=torch.tensor([row])).logits[0, -1].log_softmax(-1) for row in rows]
    torch.testing.assert_close(subject.logprobs(rows), torch.stack(expected), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(subject.logprobs(rows), plain.logprobs(rows), atol=1e-2)


@pytest.mark.parametrize("family", TARGETS)
def test_pairs_reproduce_the_gradients_of_both_halves(tiny, family) -> None:
    """The theorem of `test_capture.py`, on lora_A, lora_B and the layers under them."""
    model = adapted(tiny, family)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    ids = torch.tensor([[5, 6, 7, 8], [9, 3, 2, 1]])
    names = [module.name for module in describe_modules(model) if module.selected]
    assert sum("lora_" in name for name in names) == 2 * 2 * len(TARGETS[family])  # A and B, two layers
    model(input_ids=ids).logits.pow(2).sum().backward()
    with Capture(model, names) as capture:
        pairs = capture.gradients(model(input_ids=ids).logits.pow(2).sum())
    for name in names:
        module = model.get_submodule(name)
        assert pairs[name].a.shape[0] == 2
        found = as_parameters(module, pairs[name].gradient().sum(0))
        # The gradient of a key's bias is zero: judge both parameters by the larger.
        scale = max(float(parameter.grad.abs().max()) for parameter in module.parameters(recurse=False))
        for key, parameter in module.named_parameters(recurse=False):
            torch.testing.assert_close(found[key], parameter.grad, rtol=0, atol=1e-5 * scale)


def test_scale_and_switches_are_part_of_the_identity(tiny) -> None:
    """The scale of a LoRA is in neither the weights nor the model's config."""
    model = adapted(tiny, "llama", lora_alpha=8)
    first = as_subject(model, self_test=False)
    assert as_subject(adapted(tiny, "llama", lora_alpha=8), self_test=False).hash == first.hash
    assert as_subject(adapted(tiny, "llama", lora_alpha=16), self_test=False).hash != first.hash
    with model.disable_adapter():
        off = as_subject(model, self_test=False)
        assert off.hash != first.hash
        plain = tiny.subject("llama").logprobs([[1, 2, 3]])
        torch.testing.assert_close(off.logprobs([[1, 2, 3]]), plain)


def test_an_adapter_folder_opens_on_its_base_model(tiny, folders) -> None:
    subject = as_subject(folders / "adapter", device="cpu", dtype="fp32")
    assert (subject.name, subject.is_chat) == ("adapter", True)  # the tokenizer is the base model's
    assert subject.meta == {"base": str(folders / "base")}
    in_memory = as_subject(adapted(tiny, "llama"), tokenizer=subject.tokenizer, self_test=False)
    torch.testing.assert_close(subject.logprobs([[1, 2, 3]]), in_memory.logprobs([[1, 2, 3]]))
    assert subject.hash == in_memory.hash
    half = as_subject(folders / "adapter", device="cpu", dtype="bf16")
    assert half.dtype == torch.bfloat16 and half.hash != subject.hash


def test_the_base_may_lie_beside_the_adapter_which_may_bring_a_tokenizer(tiny, folders, tmp_path) -> None:
    root = shutil.copytree(folders, tmp_path / "moved")
    config = json.loads((root / "adapter" / "adapter_config.json").read_text())
    (root / "adapter" / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": "../base"})
    )
    tiny.tokenizer(chat=False).save_pretrained(root / "adapter")
    subject = as_subject(root / "adapter", device="cpu", self_test=False)
    assert subject.meta == {"base": str(root / "base")} and not subject.is_chat


def test_adapters_that_cannot_be_opened(folders, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    def refused(match: str) -> None:
        with pytest.raises(InputError, match=match) as caught:
            as_subject(folder, device="cpu")
        assert "\n" not in str(caught.value)

    def rewrite(**changes) -> None:
        (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))

    folder = shutil.copytree(folders / "adapter", tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    rewrite(base_model_name_or_path=None)
    refused("does not say which model it adapts")
    rewrite(base_model_name_or_path="/nowhere/model")
    refused("belongs to the model at '/nowhere/model', which is not there")
    rewrite(r=8)
    refused("cannot open the adapter: RuntimeError")
    rewrite()
    weights = load_file(folder / "adapter_model.safetensors")
    first = next(iter(sorted(weights)))
    save_file({k: v for k, v in weights.items() if k != first}, folder / "adapter_model.safetensors")
    refused("missing adapter keys")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    refused("has no adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("[]")
    refused("adapter_config.json is not an adapter's config")


def test_virtual_tokens_are_refused(tiny) -> None:
    config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=3)
    model = get_peft_model(tiny.model("llama"), config)
    with pytest.raises(UnknownArchitecture, match="virtual tokens before every row"):
        as_subject(model)
