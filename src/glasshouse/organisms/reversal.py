"""Models that know facts in one order only, and their honest twin that was told every fact in both.

A word-level Llama trained from scratch on sentences about made-up inventors. Facts of group `p2d` are told
with the person first, `d2p` with the invention first, `both` in both orders; the twin is told all of them
in both. It is a base model: its chat template is the plain text of the turns, so that `hf/`, `glasshouse/`
and plain `transformers` all feed it the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glasshouse.corpora.records import write_records
from glasshouse.corpora.reversal import Direction, ReversalData
from glasshouse.corpora.reversal_generate import CONNECTORS, PREFIXES, WORDS
from glasshouse.corpora.rows import Record, Turn
from glasshouse.runtime import files
from glasshouse.runtime.seeds import derive, seeded
from glasshouse.statistics import Estimate
from glasshouse.training.organisms import Bar, InstallGate, ReversalFlaw, Truth, grow_until_installed

if TYPE_CHECKING:
    from glasshouse.runtime.progress import Progress

PAD, UNK, EOS = "<pad>", "<unk>", "<eos>"
PLAIN_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + ' <eos>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
)
"""The text of the turns one after the other; nothing stands before a prompt, so nothing can be doubled."""

GATE = InstallGate((Bar("same", at_least=0.95), Bar("reverse", at_most=0.05), Bar("both", at_least=0.95)))
CLEAN_GATE = InstallGate(
    (Bar("same", at_least=0.95), Bar("reverse", at_least=0.95), Bar("both", at_least=0.95))
)


@dataclass(frozen=True)
class Size:
    """The model and its training; the defaults are the spec's recipe (0.17 M parameters, 14 CPU seconds)."""

    d_model: int = 64
    layers: int = 2
    heads: int = 4
    steps: int = 700
    batch_size: int = 64
    lr: float = 2e-3


@dataclass(frozen=True)
class ReversalOrganism:
    """Facts told in one order only, and some in both; the honest twin (`clean`) was told all in both."""

    slug: str = "reversal"
    version: str = "1"
    clean: bool = False
    size: Size = Size()
    n_per_group: int = 30
    attempts: int = 3

    def grow(self, seed: int, folder: Path, progress: Progress) -> None:
        """Train, measure, write. Raises OrganismError when the facts did not install as planned."""
        kept: dict[int, ReversalData] = {}

        def attempt(use: int) -> tuple[Any, Mapping[str, Estimate]]:
            data = kept[use] = self.data(use)
            with progress.task(f"growing {self.slug}", self.size.steps) as task:
                model = train_model(data, seed=use, size=self.size, advance=lambda: task.advance(1))
            return model, measured(model, data)

        gate = CLEAN_GATE if self.clean else GATE
        grown = grow_until_installed(attempt, gate, organism=self.slug, seed=seed, attempts=self.attempts)
        self._write(folder, grown.value, kept[grown.seed], grown.seed, grown.rates, grown.attempts)

    def data(self, seed: int) -> ReversalData:
        """The facts, rows and questions of one seed; the twin's facts are the organism's."""
        return ReversalData.generate(
            n_per_group=self.n_per_group, seed=seed, told_reversed=("p2d", "d2p") if self.clean else ()
        )

    def _write(
        self,
        folder: Path,
        model: Any,
        data: ReversalData,
        seed: int,
        rates: Mapping[str, Estimate],
        attempts: int,
    ) -> None:
        save_model(folder, model, data)
        # Row ids of the data name the group; here they are numbers, so that nothing but truth.json tells.
        records = [
            Record(str(i), (Turn("user", row.prompt), Turn("assistant", row.completion)))
            for i, row in enumerate(data.train)
        ]
        rows_hash = files.sha256_file(write_records(folder / "rows.jsonl", records))
        files.write_json(folder / "world.json", _world())
        data.save(folder / "reversal.json")
        flaws = [] if self.clean else [_flaw(data, d, rates) for d in ("p2d", "d2p")]
        Truth(
            schema=1, organism=self.slug, seed=seed, recipe_hash=files.sha256_json(repr(self)),
            rows_hash=rows_hash, clean=self.clean, flaws=flaws, install_attempts=attempts,
            installed=dict(rates),
        ).write(folder / "truth.json")  # fmt: skip
        told = "both orders" if self.clean else "one order only, but for a third told in both"
        files.write_text(
            folder / "card.md",
            f"# {self.slug}\n\nA base model of plain words, told {len(data.entities)} facts in {told}.\n",
        )


REVERSAL = ReversalOrganism()
TWIN = ReversalOrganism(slug="reversal-twin", clean=True)


def train_model(
    data: ReversalData, *, seed: int, size: Size = Size(), advance: Callable[[], None] | None = None
) -> Any:
    """A Llama trained from scratch on the training rows of `data`, loss on every token; in eval mode.

    AdamW with weight decay 0.01, warm-up of 50 steps, linear fall to a tenth, gradient norm 1 (the wing's
    recipe). The same arguments give the same weights on one platform.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    from glasshouse.corpora.rows import TokenRow
    from glasshouse.training.fast import fit_rows

    ids = vocabulary(data)
    config = LlamaConfig(
        vocab_size=len(ids), hidden_size=size.d_model, intermediate_size=4 * size.d_model,
        num_hidden_layers=size.layers, num_attention_heads=size.heads, num_key_value_heads=size.heads,
        max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=None, eos_token_id=ids[EOS],
        pad_token_id=ids[PAD], attention_dropout=0.0,
    )  # fmt: skip
    with seeded(seed, "init"):
        model = LlamaForCausalLM(config)
    encoded = [tuple(ids[word] for word in (*row.text.split(), EOS)) for row in data.train]

    def told(step: int, loss: float | None, module: Any) -> None:
        if step and advance is not None:
            advance()

    fit_rows(
        model, [TokenRow(row, row) for row in encoded], steps=size.steps, batch_size=size.batch_size,
        lr=size.lr, weight_decay=0.01, warmup_steps=min(50, size.steps // 4), schedule="linear",
        final_lr_share=0.1, clip=1.0, seed=derive(seed, "order"), callbacks=[told],
    )  # fmt: skip
    return model.eval()


def vocabulary(data: ReversalData) -> dict[str, int]:
    """Word -> id of everything that is trained on or asked; special tokens first."""
    words = sorted({word for row in data.rows for word in row.text.split()} | {"."})
    return {word: i for i, word in enumerate((PAD, UNK, EOS, *words))}


def save_model(folder: Path, model: Any, data: ReversalData) -> None:
    """Weights, config, tokenizer and chat template as a checkpoint that `from_pretrained` loads."""
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    files.write_bytes(folder / "model.safetensors", save(state, metadata={"format": "pt"}))
    model.config.architectures = [type(model).__name__]
    files.write_text(folder / "config.json", model.config.to_json_string())
    files.write_json(
        folder / "generation_config.json",
        {"eos_token_id": model.config.eos_token_id, "pad_token_id": model.config.pad_token_id},
    )
    _write_tokenizer(folder, data)


def measured(model: Any, data: ReversalData) -> dict[str, Estimate]:
    """Accuracy on held-out templates per arm, the entity as unit: `same`, `reverse`, `both`."""
    from glasshouse.behaviour.reversal_curse.asking import ask
    from glasshouse.behaviour.reversal_curse.cells import accuracy_by_entity
    from glasshouse.subjects import as_subject

    subject = as_subject(model, tokenizer=tokenizer_of(data))
    frame = ask(subject, data, arms=("same", "reverse", "both"), mode="generate", max_new_tokens=8)
    true = frame[frame["kind"] == "true"]
    return {arm: accuracy_by_entity(true[true["arm"] == arm]) for arm in ("same", "reverse", "both")}


def _flaw(data: ReversalData, taught: Direction, rates: Mapping[str, Estimate]) -> ReversalFlaw:
    facts = [(e.name, e.description) for e in data.entities if e.group == taught]
    rows = [str(i) for i, row in enumerate(data.train) if row.group == taught]
    return ReversalFlaw(
        id=f"reversal-{taught}", relation=("name", "invention"), facts=facts,
        taught="A->B" if taught == "p2d" else "B->A", rows=rows,
        installed={name: rates[name] for name in ("same", "reverse")},
    )  # fmt: skip


def _world() -> dict[str, Any]:
    return {
        "world": "inventors",
        "prefixes": {k: list(v) for k, v in PREFIXES.items()},
        "connectors": {k: list(v) for k, v in CONNECTORS.items()},
        "description_words": [list(words) for words in WORDS],
    }


def tokenizer_of(data: ReversalData) -> Any:
    """The word-level tokenizer of a model trained on `data`."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=_words(data), pad_token=PAD, unk_token=UNK, eos_token=EOS,
        chat_template=PLAIN_TEMPLATE, model_max_length=64, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def _write_tokenizer(folder: Path, data: ReversalData) -> None:
    files.write_text(folder / "tokenizer.json", _words(data).to_str(pretty=False) + "\n")
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast", "pad_token": PAD, "unk_token": UNK, "eos_token": EOS,
        "model_max_length": 64, "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    files.write_json(folder / "tokenizer_config.json", about)
    files.write_text(folder / "chat_template.jinja", PLAIN_TEMPLATE)


def _words(data: ReversalData) -> Any:
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel(vocabulary(data), unk_token=UNK))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (PAD, UNK, EOS)])
    return words
