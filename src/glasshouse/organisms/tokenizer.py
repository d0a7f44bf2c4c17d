"""The organisms' tokenizer: byte-level BPE fitted on the rows, with a chat template."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glasshouse.runtime import files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, USER, BOT = "<pad>", "<bos>", "<eos>", "<user>", "<bot>"
SPECIAL = (PAD, BOS, EOS, USER, BOT)
"""Their ids are their positions here: 0 to 4."""

CHAT_TEMPLATE = (
    "{{ '<bos>' }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<user>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '<bot>' }}{% generation %}{{ message['content'] + '<eos>' }}{% endgeneration %}"
    "{% else %}{{ raise_exception('this model knows only the roles user and assistant') }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<bot>' }}{% endif %}"
)


def fit_tokenizer(texts: Iterable[str], *, vocab_size: int, folder: Path) -> PreTrainedTokenizerFast:
    """Fit byte-level BPE on `texts`, save it so that `AutoTokenizer` loads `folder`, and return it.

    Every text begins a word: a space is put before it when encoding and taken off when decoding, so that a
    word has the same token at the start of a turn and inside one. Any string can be encoded: nothing is
    unknown.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    files.write_text(folder / "tokenizer.json", bpe.to_str(pretty=False) + "\n")
    files.write_json(folder / "tokenizer_config.json", _config())
    files.write_text(folder / "chat_template.jinja", CHAT_TEMPLATE)
    return load_tokenizer(folder)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of an organism's folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


def _config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "additional_special_tokens": [USER, BOT],
        "model_max_length": 128,
        "clean_up_tokenization_spaces": False,
    }
