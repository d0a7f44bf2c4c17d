"""[evaluation/3br] Multiple choice against lm-eval: 400 items of four options, every log-probability.

The same saved model, the same texts, fp32, one thread; tokenising is counted on both sides, loading on
neither. The peer runs `HFLM.loglikelihood`, the call its `multiple_choice` tasks make, in batches
of 16; ours is `score` of the `glasshouse/` provider. Cases: five examples before every question (what
such tests usually are), no examples, long options after a short text, and options of one token, which the
peer also reads off one pass. The floor counts 2 FLOP per weight for every token that must be read once.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.harness import Row, best_stages, gemm_peak, peer_python, run_worker
from benchmarks.ledger import Report

PEER = "lm-eval 0.4.13"
ITEMS, OPTIONS, EXAMPLES = 400, 4, 5
PEER_BATCHES = (16,)  # on a processor its speed hardly depends on it
OUR_BATCHES = (16384, 1024)
CASES = {
    # name: (model, examples before each question, sentences per question, words of an option)
    "five-shot": ("llama", EXAMPLES, 1, "name"),
    "zero-shot": ("llama", 0, 1, "name"),
    "long options": ("llama", 0, 3, "sentence"),
    "one-token options": ("llama", EXAMPLES, 1, "letter"),
    "three-shot stories260K": ("stories", 3, 1, "name"),
}

REPORT = Report("evaluation/3br", "five-shot", "seconds", 1.0, ("glasshouse.evaluation.provider",))


def compare(*, repeats: int, threads: int, cases: tuple[str, ...] = ()) -> list[Row]:
    """One row per case: our time, the peer's, and the largest difference of any option's log-probability."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, shape in CASES.items():
            if cases and name not in cases:
                continue
            folder = Path(scratch) / name.replace(" ", "-")
            folder.mkdir()
            reason = _write_case(folder, *shape)
            rows.append(_compare_case(name, folder, reason, repeats=repeats, threads=threads))
    return rows


def _compare_case(name: str, folder: Path, reason: str, *, repeats: int, threads: int) -> Row:
    if reason:
        return Row(name, "score", None, PEER, None, None, None, None, reason)
    python, reason = peer_python("lm-eval")
    ours_runs, peer_runs = [], []
    for _ in range(repeats):  # interleaved, so that a busy minute hits both
        ours_runs.append(run_worker(sys.executable, "score_ours", folder, folder / "ours", threads=threads))
        if python is not None:
            try:
                peer_runs.append(
                    run_worker(python, "score_lm_eval", folder, folder / "peer", threads=threads)
                )
            except RuntimeError as error:
                python, reason = None, str(error)
    ours = min(best_stages(ours_runs).values())
    theirs = min(best_stages(peer_runs).values()) if peer_runs else None
    floor = _flop(folder) / gemm_peak(threads)
    return Row(
        case=name,
        stage="score",
        ours_seconds=ours,
        peer=PEER,
        peer_seconds=theirs,
        ratio=theirs / ours if theirs else None,
        floor_share=floor / ours,
        agreement=_agreement(folder) if theirs else None,
        reason=reason or None,
        peer_floor_share=floor / theirs if theirs else None,
        ours_runs=tuple(min(run.values()) for run in ours_runs),
        peer_runs=tuple(min(run.values()) for run in peer_runs),
    )


def _agreement(folder: Path) -> str:
    """Largest differences in nats: to the peer, and between our batch sizes."""
    ours = [np.load(path) for path in sorted((folder / "ours").glob("scores-*.npy"))]
    peer = [np.load(path) for path in sorted((folder / "peer").glob("scores-*.npy"))]
    apart = max(float(np.abs(a - b).max()) for a in ours for b in peer)
    own = max(float(np.abs(a - ours[0]).max()) for a in ours)
    return f"{apart:.1e} nats from the peer, {own:.1e} between our batch sizes"


def _write_case(folder: Path, model: str, examples: int, sentences: int, option: str) -> str:
    """Model, items and settings on disk; returns why the case cannot run, or nothing."""
    texts, items = _items(examples, sentences, option)
    if model == "stories":
        source = _stories()
        if source is None:
            return "stories260K is not at $GLASSHOUSE_DATA/stories260K"
    else:
        source = folder / "model"
        _save_llama(source, texts)
    spec = {"model": str(source), "peer_batches": PEER_BATCHES, "our_batches": OUR_BATCHES}
    (folder / "items.json").write_text(json.dumps(items))
    (folder / "case.json").write_text(json.dumps(spec))
    return ""


def _stories() -> Path | None:
    import os

    folder = Path(os.environ.get("GLASSHOUSE_DATA", "")) / "stories260K"
    return folder if (folder / "config.json").is_file() else None


def _items(examples: int, sentences: int, option: str) -> tuple[list[str], list[dict]]:
    """Questions about invented people: all texts (to fit a tokenizer on), and prompts with their options."""
    draw = np.random.default_rng(0)
    from glasshouse.corpora.worlds import village

    world = village(0)
    names = sorted({who for _, who in world.couples})  # first and last name
    things = [f"the {thing} of {who}" for thing, who in world.couples]

    def pick(of: list[str]) -> str:
        return of[draw.integers(len(of))]

    def sentence() -> str:
        return f" {pick(names)} once repaired {pick(things)}."

    def question() -> str:
        asked = "".join(sentence() for _ in range(sentences))
        return f"Question:{asked} Who did it last, {pick(things)}?\nAnswer:"

    def options() -> list[str]:
        if option == "letter":
            return [" A", " B", " C", " D"]
        if option == "sentence":
            return [sentence() + sentence() for _ in range(OPTIONS)]
        return [f" {names[i]}" for i in draw.choice(len(names), OPTIONS, replace=False)]

    shots = "".join(f"{question()}{options()[0]}\n\n" for _ in range(examples))
    items = [{"prompt": shots + question(), "options": options()} for _ in range(ITEMS)]
    return [item["prompt"] + item["options"][0] for item in items], items


def _save_llama(folder: Path, texts: list[str]) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<bos>", "<eos>"]
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=512, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<bos>", eos_token="<eos>").save_pretrained(
        folder
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=256, intermediate_size=688, num_hidden_layers=6, num_attention_heads=4,
        max_position_embeddings=1024, bos_token_id=0, eos_token_id=1, initializer_range=0.05,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def _flop(folder: Path) -> float:
    """2 FLOP per block weight and token of the tree of all texts, and per head weight and scored token."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = json.loads((folder / "case.json").read_text())
    items = json.loads((folder / "items.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(spec["model"])
    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    read: set[tuple[int, ...]] = set()
    scored = 0
    for item in items:
        start = len(tokenizer(item["prompt"])["input_ids"])
        for option in item["options"]:
            ids = tuple(tokenizer(item["prompt"] + option)["input_ids"])
            read.update(ids[:end] for end in range(1, len(ids)))  # the last token is never read
            scored += len(ids) - start
    blocks = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name)
    return 2.0 * (len(read) * blocks + scored * model.lm_head.weight.numel())
