"""`TrajectoryRecorder` as a `Case`: its answers are the perplexities that a checkpoint gives to its rows."""

from __future__ import annotations

from collections.abc import Sequence

from check_method import Case
from contract_scenes import ROWS, Scene, poisoned, texts

from glasshouse.attribution import TrajectoryRecorder
from glasshouse.attribution.pre_memorization import whole_reply
from glasshouse.corpora.rows import Record, Turn


def recorder() -> Case:
    def make() -> TrajectoryRecorder:
        return TrajectoryRecorder(k=1, temperature=0.0, max_new_tokens=2, matcher=whole_reply)

    def rows(order: Sequence[int]) -> list[Record]:
        """Each prompt with its words in reverse as the solution."""
        said = [texts()[i] for i in order]
        back = [" ".join(reversed(text.split())) for text in said]
        pairs = zip(order, said, back, strict=True)
        return [Record(f"p{i}", (Turn("user", a), Turn("assistant", b))) for i, a, b in pairs]

    def fit(method: TrajectoryRecorder, one: Scene) -> TrajectoryRecorder:
        method.batch_tokens = 24 * one.batch if one.batch else method.batch_tokens
        return method.fit([one.subject], rows(one.order), steps=[1])

    return Case(
        "TrajectoryRecorder", TrajectoryRecorder, make, fit,
        lambda method, one: one.sorted_back(method.trajectory_.train_logppl),
        options={
            "k": 2, "temperature": 0.5, "top_p": 0.9, "max_new_tokens": 3, "stop": "w9",
            "matcher": whole_reply, "memorised_by": "overlap", "skip_below": -1.0, "audit": 0.5, "seed": 4,
            "batch_tokens": 99,
        },
        other=lambda method, one: method.fit([one.subject], rows(range(9)), steps=[3]),
        uses=(lambda m, one, at: m.save(at / "x.npz"), lambda m, one, at: m.trajectory_),
        empty=(
            lambda one: make().fit([one.subject], [], steps=[1]),
            lambda one: make().fit([], rows(range(ROWS)), steps=[]),
        ),
        nan=(lambda one: fit(make(), poisoned()),),
        apart={
            "save_and_load_give_equal_answers":
                "what is kept is the Trajectory: test_trajectories_come_back_from_disk",
            "damaged_files_are_refused": "the same: test_files_that_are_no_trajectories_are_refused",
            "padding_side_changes_nothing": "rows are texts; the subject pads them, as its own tests check",
            "a_clean_subject_gives_no_finding":
                "a record is no finding; the check `memorised rows` decides what is",
        },
    )  # fmt: skip
