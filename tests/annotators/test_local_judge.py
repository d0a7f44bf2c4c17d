"""A real model as judge: a tiny local one behind the glasshouse/ provider, reached by its name alone."""

from __future__ import annotations

import numpy as np
import pytest

from glasshouse.annotators import LMAnnotator

WORDS = ("yes", "no", "red", "blue", "fish", "sea", "[", "]")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def judge_folder(tmp_path_factory):
    """A word-level Llama with a hand-made output layer: after any prompt yes is thrice as likely as no."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("judge")
    names = ["<pad>", "<eos>", "<unk>", "<user>", "<bot>", *WORDS]
    raw = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>",
        additional_special_tokens=["<user>", "<bot>"],
    )  # fmt: skip
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<user>' if m['role'] == 'user' else '<bot>' }}{{ m['content'] }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}<bot>{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(names), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=2048, pad_token_id=0, eos_token_id=1, bos_token_id=1,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():  # every block adds nothing, so the last token <bot> alone decides
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        hidden = model.model.norm(model.model.embed_tokens.weight)
        bot, yes = hidden[names.index("<bot>")], hidden[names.index("yes")]
        both = torch.stack([bot, yes])
        wanted = torch.zeros(2, len(names))
        wanted[0, names.index("yes")], wanted[0, names.index("no")] = 6.0, 6.0 - float(np.log(3))
        wanted[1, 1] = 20.0  # after yes: the end
        model.lm_head.weight.copy_((torch.linalg.pinv(both) @ wanted).T)
    model.save_pretrained(folder)
    return folder


def test_a_local_model_judges_by_its_log_probabilities(judge_folder, tmp_path):
    """It puts three times as much on yes as on no, so every soft rating is 0.75, whatever the batch."""
    judge = LMAnnotator(f"glasshouse/{judge_folder}", soft=True, max_tokens=3, folder=tmp_path)
    found = judge.rate(["mentions a colour", "mentions the sea"], ["red fish", "blue sea", "fish"])
    np.testing.assert_allclose(found.value, 0.75, atol=1e-4)
    assert found.usage.soft == 6 == found.usage.calls and (found.confidence > 0.9).all()
    assert found.usage.usd == 0 and found.usage.unpriced == 0 and found.usage.tokens_in > 6
    again = LMAnnotator(f"glasshouse/{judge_folder}", soft=True, max_tokens=3, folder=tmp_path)
    assert again.id == judge.id
    assert again.rate(["mentions the sea"], ["fish"]).usage.calls == 0


def test_hard_answers_and_another_model_of_the_same_name(judge_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    hard = LMAnnotator(f"glasshouse/{judge_folder}", max_tokens=3, folder=tmp_path)
    found = hard.rate(["mentions a colour"], ["red fish"])
    assert found.value.item() == 1 and found.usage.regex == 1  # it says yes, without JSON
    path = judge_folder / "model.safetensors"
    weights = load_file(path)
    weights["lm_head.weight"] = weights["lm_head.weight"] * 1.01
    save_file(weights, path, metadata={"format": "pt"})
    other = LMAnnotator(
        f"glasshouse/{judge_folder}", max_tokens=3, folder=tmp_path, model_args={"dtype": "fp32"}
    )
    assert other.id != hard.id
    assert other.rate(["mentions a colour"], ["red fish"]).usage.calls == 1
