"""What a study has found so far: its runs, what their pairs say, and what tells most next."""

from __future__ import annotations

from dataclasses import dataclass

from fcmae.grids.study_plan import Question, StudyOptions
from fcmae.grids.verdicts import Verdict, verdict


@dataclass(frozen=True)
class Result:
    """A finished run."""

    # arm, labels, seed, rate: what it was; ``labels`` None for all
    arm: str
    labels: int | None
    seed: int
    rate: float
    value: float  # the metric that decides; ``other``: the task's other metric
    other: float | None
    seconds: float | None  # of its training
    folder: str  # the run's
    joules: float | None = None  # that it used, None where that is not known


class StudyResults:
    """The finished runs of a study, and their answers to its questions."""

    def __init__(self, options: StudyOptions) -> None:
        self.options = options
        self.results: list[Result] = []

    def differences(self, question: Question) -> list[float]:
        """The arm's value minus the other's, in the order of the seeds that both have."""
        found = {
            (result.arm, result.seed): result.value
            for result in self.results
            if result.labels == question.size
        }
        arm, other = question.arm, question.against
        seeds = range(self.options.max_seeds)
        both = [s for s in seeds if (arm, s) in found and (other, s) in found]
        return [found[arm, s] - found[other, s] for s in both]

    def answers(self) -> dict[Question, Verdict]:
        """What the pairs say to every question."""
        asked = self.options.questions()
        return {question: verdict(self.differences(question), len(asked)) for question in asked}

    def verdicts(self) -> dict[tuple[str, int | None], Verdict]:
        """(arm, label size) -> what the pairs say, of every arm but the first against it."""
        first = self.options.arms[0].name
        return {(q.arm, q.size): v for q, v in self.answers().items() if q.against == first}

    def next_waves(self, count: int = 1) -> list[tuple[int | None, int]]:
        """The label sizes and seeds that tell most: of the sizes with an open question, the one
        with the fewest pairs; the middle size first. Empty when nothing is open."""
        sizes = list(self.options.labels)
        middle = len(sizes) // 2
        order = sorted(sizes, key=lambda size: abs(sizes.index(size) - middle))
        answers = self.answers()
        seeds = {
            size: self._seeds_done(size)
            for size in order
            if any(q.size == size and v.answer == "cannot tell" for q, v in answers.items())
        }
        chosen: list[tuple[int | None, int]] = []
        for _ in range(count):
            open_sizes = [size for size in seeds if seeds[size] < self.options.max_seeds]
            if not open_sizes:
                break
            size = min(open_sizes, key=lambda size: seeds[size])
            chosen.append((size, seeds[size]))
            seeds[size] += 1
        return chosen

    def _seeds_done(self, size: int | None) -> int:
        done = {(r.arm, r.seed) for r in self.results if r.labels == size}
        seed = 0
        while all((arm.name, seed) in done for arm in self.options.arms):
            seed += 1
        return seed
