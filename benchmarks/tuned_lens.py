"""Tuned lens against tuned-lens 0.2.0, in two ways.

`step`: the same optimiser (SGD, Nesterov, the package's defaults), the same rows in the same order, each row
seen once, so that both run the model once per row: final held-out KL within 1 % per layer, and time per step.
`target`: both sides over the same grid of optimisers, learning rates and lengths, several epochs of the same
rows: CPU seconds until the mean held-out KL is within 0.5 % of the best that the peer reaches in the grid.
Ours keeps the hidden states of the frozen model between epochs; the peer runs the model in every step.

Floor of a step: 4 dV + 4 d^2 FLOP per token and layer (neither the output matrix nor the hidden state needs a
gradient; with them it would be three times 2 dV + 2 d^2), and one forward pass of the model, measured.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

import numpy as np

from benchmarks.harness import Row, gemm_peak, peer_python, run_worker

PEER = "tuned-lens 0.2.0"
WITHIN = 0.01
REACHED = 1.005
GRID = {"opt": ("sgd", "adam"), "lr_scale": (3.0, 10.0, 30.0), "steps": (50, 100, 200)}


def compare(*, repeats: int, threads: int, cases: tuple[str, ...] = ()) -> list[Row]:
    """Rows for the cases `stories` (GLASSHOUSE_DATA), `gpt2` (random weights) and `target`."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, build in (("stories", _stories_case), ("gpt2", _gpt2_case), ("target", _target_case)):
            if cases and name not in cases:
                continue
            folder = Path(scratch) / name
            folder.mkdir()
            spec = build(folder)
            if isinstance(spec, str):
                rows.append(Row(name, "all", None, PEER, None, None, None, None, spec))
                continue
            (folder / "case.json").write_text(json.dumps(spec))
            judge = _target_rows if name == "target" else _step_rows
            rows += judge(name, folder, spec, 1 if name == "target" else repeats, threads)
    return rows


def _run(folder: Path, repeats: int, threads: int) -> tuple[list[dict], list[dict], str]:
    """The runs of ours and of the peer, each with its least time, and why the peer is absent."""
    python, reason = peer_python("tuned-lens")
    found: dict[str, list[list[dict]]] = {"ours": [], "peer": []}
    for _ in range(repeats):  # interleaved, so that a busy minute hits both
        for side, interpreter in (("ours", sys.executable), ("peer", python)):
            if interpreter is None:
                continue
            try:
                run_worker(interpreter, f"tuned_lens_{side}", folder, folder / side, threads=threads)
            except RuntimeError as error:
                if side == "ours":
                    raise
                python, reason = None, str(error)
                continue
            found[side].append(json.loads((folder / side / "runs.json").read_text()))
    return _least(found["ours"]), _least(found["peer"]), reason


def _least(runs: list[list[dict]]) -> list[dict]:
    if not runs:
        return []
    return [{**one, "seconds": min(r[i]["seconds"] for r in runs)} for i, one in enumerate(runs[0])]


def _step_rows(name: str, folder: Path, spec: dict, repeats: int, threads: int) -> list[Row]:
    ours, peer, reason = _run(folder, repeats, threads)
    floor = _floor(folder, spec, threads)
    steps, theirs = spec["configs"][0]["steps"], peer[0]["seconds"] if peer else None
    rows = []
    for one in ours:
        agreement = None
        if peer:
            gap = float(np.max(np.abs(np.array(one["kl"]) / np.array(peer[0]["kl"]) - 1)))
            verdict = "equal" if gap <= WITHIN else "DIFFERENT"
            agreement = f"{verdict}: held-out KL of a layer differs by at most {gap:.1e} (tolerance {WITHIN})"
        rows.append(
            Row(
                name, f"step, {one['stage']}", one["seconds"] / steps, PEER,
                None if theirs is None else theirs / steps,
                None if theirs is None else theirs / one["seconds"],
                floor / (one["seconds"] / steps), agreement, reason or None,
                None if theirs is None else floor / (theirs / steps),
            )
        )  # fmt: skip
    return rows


def _target_rows(name: str, folder: Path, spec: dict, repeats: int, threads: int) -> list[Row]:
    ours, peer, reason = _run(folder, repeats, threads)
    if not peer:
        return [Row(name, "time to the peer's best KL", None, PEER, None, None, None, None, reason)]
    target = float(np.nanmin([np.mean(one["kl"]) for one in peer])) * REACHED
    fastest = {}
    for side, runs in (("ours", ours), ("peer", peer)):
        there = [one for one in runs if float(np.mean(one["kl"])) <= target]
        fastest[side] = min(there, key=lambda one: one["seconds"]) if there else None
    mine, theirs = fastest["ours"], fastest["peer"]
    told = f"target {target:.4f} nats; peer by {_config(theirs)}; ours " + (
        f"by {_config(mine)}" if mine else f"NOT REACHED, {min(np.mean(o['kl']) for o in ours):.4f}"
    )
    seconds = mine["seconds"] if mine else None
    ratio = theirs["seconds"] / seconds if seconds else None
    return [
        Row(name, "time to the peer's best KL", seconds, PEER, theirs["seconds"], ratio, None, told, None)
    ]


def _config(one: dict) -> str:
    return f"{one['opt']} x{one['lr_scale']:g}, {one['steps']} steps, KL {np.mean(one['kl']):.4f}"


def _stories_case(folder: Path, *, length: int = 256, tokens: int = 2048) -> dict | str:
    source = Path(os.environ.get("GLASSHOUSE_DATA", "absent")) / "stories260K"
    if not source.is_dir():
        return "stories260K is not at $GLASSHOUSE_DATA/stories260K"
    (folder / "model").symlink_to(source)
    _sampled_rows(folder, train=160, held_out=32, length=length)
    config = {"opt": "sgd", "lr_scale": 1.0, "steps": 20, "tokens": tokens}
    _write_order(folder, config["tokens"], config["steps"])
    return {"configs": [config], "ours": {"one pass": 2**30, "nothing kept": 0}}


def _target_case(folder: Path) -> dict | str:
    spec = _stories_case(folder, length=128, tokens=1024)
    if isinstance(spec, str):
        return spec
    configs = [dict(zip(GRID, values, strict=True), tokens=1024) for values in product(*GRID.values())]
    _write_order(folder, 1024, max(GRID["steps"]))
    return {"configs": configs, "ours": {"train": 2**30}}


def _gpt2_case(folder: Path) -> dict:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_embd=256, n_layer=6, n_head=4, vocab_size=8000, n_positions=128,
                        bos_token_id=0, eos_token_id=0, initializer_range=0.1)  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder / "model")
    p = 1.0 / np.arange(1, 8001)
    draw = np.random.default_rng(0).choice(8000, size=(104, 128), p=p / p.sum()).astype(np.int64)
    np.save(folder / "rows.npy", draw[:80])
    np.save(folder / "held_out.npy", draw[80:])
    one = {"opt": "sgd", "lr_scale": 1.0, "steps": 10, "tokens": 1024}
    _write_order(folder, one["tokens"], one["steps"])
    return {"configs": [one], "ours": {"one pass": 2**30, "nothing kept": 0}}


def _sampled_rows(folder: Path, *, train: int, held_out: int, length: int) -> None:
    """Rows that the model writes itself."""
    subject = _opened(folder)
    start = subject.model.config.bos_token_id
    said = subject.generate_ids(
        [[start]], n=train + held_out, temperature=1.0, max_new_tokens=length - 1, stop_ids=[], seed=0
    )[0]
    rows = np.array([[start, *getattr(one, "ids", one)] for one in said])
    np.save(folder / "rows.npy", rows[:train])
    np.save(folder / "held_out.npy", rows[train:])


def _write_order(folder: Path, tokens: int, steps: int) -> None:
    """Which rows each step takes, [steps, rows]: the order in which our lens takes them (seed 0)."""
    from itertools import islice

    from glasshouse.internals.tuned_lens.head import Head
    from glasshouse.internals.tuned_lens.lens import TunedLens
    from glasshouse.internals.tuned_lens.supply import Supply

    rows = [r.tolist() for r in np.load(folder / "rows.npy")]
    subject = _opened(folder)
    options = TunedLens(steps=steps, tokens_per_step=tokens, seed=0)._options()
    supply = Supply(subject, Head.of(subject), rows, options, 0)
    np.save(folder / "rows.npy", np.array(supply.rows))  # in the order that the numbers of `steps` mean
    np.save(folder / f"order-{tokens}.npy", np.array(list(islice(supply.steps(), steps))))


def _opened(folder: Path):
    """The model of a case; a folder without a tokenizer will do."""
    from transformers import AutoModelForCausalLM

    from glasshouse.subjects import as_subject

    return as_subject(AutoModelForCausalLM.from_pretrained(folder / "model").float(), self_test=False)


def _floor(folder: Path, spec: dict, threads: int) -> float:
    """CPU seconds of one step: the products of the lens at this machine's rate, and one forward pass."""
    import torch

    subject, one = _opened(folder), spec["configs"][0]
    d, vocab = subject.d_model, subject.vocab_size
    flops = one["tokens"] * subject.n_layers * (4 * d * vocab + 4 * d * d)
    rows = torch.from_numpy(np.load(folder / "rows.npy"))
    batch, best = rows[: one["tokens"] // rows.shape[1]], float("inf")
    with torch.no_grad():
        for _ in range(5):
            start = time.process_time()
            subject.parts.base(batch, use_cache=False)
            best = min(best, time.process_time() - start)
    return flops / gemm_peak(threads) + best
