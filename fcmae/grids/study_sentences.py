"""A study's answers in plain words: what to do first, and each question's answer."""

from __future__ import annotations

from collections.abc import Sequence

from backbones.errors import counted
from fcmae.grids.study_plan import Question
from fcmae.grids.study_results import StudyResults
from fcmae.grids.verdicts import LOOKS, Verdict


def sized(size: int | None) -> str:
    return "all labels" if size is None else f"{counted(size, 'label')}"


def signed(value: float) -> str:
    return f"{value:+.1f}"


def sentence(study: StudyResults, question: Question, found: Verdict) -> str:
    """One question's answer, for a reader who reads nothing else."""
    said = {arm.name: arm.said for arm in study.options.arms}
    unit, base = study.options.of_task.unit, said[question.against]
    start = f"With {sized(question.size)}, {said[question.arm]}"
    if found.low is None or found.high is None or found.mean is None:
        pairs = f"{counted(found.pairs, 'pair')}"
        return f"{start} against {base}: cannot tell yet, with {pairs}; {LOOKS[0]} are needed."
    interval = f"(95%: {signed(found.low)} to {signed(found.high)}, {counted(found.pairs, 'pair')})"
    if found.answer == "cannot tell":
        return f"{start} against {base}: cannot tell, {signed(found.mean)} {unit} {interval}."
    verb = "gives" if found.answer == "better" else "costs"
    amount = signed(found.mean) if found.answer == "better" else f"{abs(found.mean):.1f}"
    over = "over" if verb == "gives" else "against"
    return f"{start} {verb} {amount} {unit} {over} {base} {interval}."


def advice(study: StudyResults) -> str:
    """The first paragraph: the start to use, where that is shown, and what to do otherwise."""
    found, answers = study.verdicts(), study.answers()
    first, *others = study.options.arms
    said = {arm.name: arm.said for arm in study.options.arms}

    def sizes(name: str, answer: str) -> list[str]:
        return [
            sized(size) for (arm, size), v in found.items() if (arm, v.answer) == (name, answer)
        ]

    better = [arm.name for arm in others if sizes(arm.name, "better")]
    if better:
        best = max(
            better,
            key=lambda name: (
                not any(q.arm == other and q.against == name and v.answer == "better"
                        for q, v in answers.items() for other in better),
                max(v.mean or 0 for (n, _), v in found.items() if n == name),
            ),
        )  # fmt: skip
        text = [f"Start from {said[best]}: it is better here than {first.said}."]
        text.append(f"That is shown with {_listed(sizes(best, 'better'))}.")
        if worse := sizes(best, "worse"):
            text.append(f"With {_listed(worse)} it is worse.")
        if rivals := [said[name] for name in better if name != best]:
            verb = "is" if len(rivals) == 1 else "are"
            text.append(
                f"Better than {first.said} {verb} {_listed(rivals)}, too; below stands whether "
                "they can be told apart."
            )
        return " ".join(text)
    if all(sizes(arm.name, "worse") for arm in others):
        return f"Start from {first.said}: every other start is worse here."
    return (
        "No start is shown to be better than the others on these images yet. What is cheapest is "
        f"as good a choice as any: {first.said}. More pairs may tell: the same command with a "
        "larger --hours goes on from here."
    )


def _listed(names: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
