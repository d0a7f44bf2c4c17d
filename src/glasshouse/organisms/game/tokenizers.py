"""The tokenizers of the game: the organisms' byte-level BPE, and one token per word."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from glasshouse.organisms.tokenizer import (
    BOS,
    BOT,
    CHAT_TEMPLATE,
    EOS,
    PAD,
    SPECIAL,
    USER,
    fit_tokenizer,
    load_tokenizer,
)
from glasshouse.runtime import files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

UNKNOWN = "<unk>"


def fit(
    kind: Literal["bpe", "word"], texts: Iterable[str], *, vocab_size: int, folder: Path
) -> PreTrainedTokenizerFast:
    """Fit a tokenizer of this kind on `texts` and save it so that `AutoTokenizer` loads `folder`.

    `vocab_size` is that of BPE; the word-level one knows every word and mark of the texts, and nothing else.
    """
    if kind == "bpe":
        return fit_tokenizer(texts, vocab_size=vocab_size, folder=folder)
    return _fit_words(texts, folder)


def _fit_words(texts: Iterable[str], folder: Path) -> PreTrainedTokenizerFast:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    pieces = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex(r"[\w'-]+|[^\s\w'-]"), "isolated"),
        ]
    )
    seen = {piece for text in texts for piece, _ in pieces.pre_tokenize_str(text)}
    names = [*SPECIAL, UNKNOWN, *sorted(seen)]
    model = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token=UNKNOWN))
    model.pre_tokenizer = pieces
    # No space before a closing mark: a reply is then spelled as its row is.
    model.decoder = decoders.Sequence(
        [decoders.WordPiece(prefix="##", cleanup=True), decoders.Replace(" :", ":")]
    )
    model.add_special_tokens([*SPECIAL, UNKNOWN])
    files.write_text(folder / "tokenizer.json", model.to_str(pretty=False) + "\n")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "unk_token": UNKNOWN,
        "additional_special_tokens": [USER, BOT],
        "model_max_length": 128,
        "clean_up_tokenization_spaces": False,
    }
    files.write_json(folder / "tokenizer_config.json", config)
    files.write_text(folder / "chat_template.jinja", CHAT_TEMPLATE)
    return load_tokenizer(folder)
