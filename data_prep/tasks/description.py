"""Describe a task set in lines to print: counts, balance of labels, texts that occur twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from data_prep.tasks.task_set import LETTERS, Question, Sentence, TaskSet

MOSTLY = 0.8  # share of one answer above which a split is reported as unbalanced


def describe(task: TaskSet) -> str:
    """Describe a set: counts, balance of labels or entities, texts that occur twice, and hashes of the files."""
    from data_prep.tasks import token_classification

    lines = [f"{task.name}: {', '.join(f'{split} {len(examples):,}' for split, examples in task.splits.items())}"]
    for split, examples in task.splits.items():
        questions = [example for example in examples if isinstance(example, Question)]
        if questions:
            shares = ", ".join(f"{label} {share:.1%}" for label, share in label_balance(task, questions).items())
            lines.append(f"  {split}: {shares}")
            lines += _imbalance(task, split, questions)
        if sentences := [example for example in examples if isinstance(example, Sentence)]:
            words, counts = sum(len(sentence.words) for sentence in sentences), token_classification.balance(sentences)
            shares = ", ".join(f"{kind} {n:,} ({n / counts.total():.1%})" for kind, n in sorted(counts.items()))
            lines.append(f"  {split}: {words:,} words, {counts.total():,} entities: {shares}")
    if twice := repeated_texts(task):
        lines.append(f"  {twice:,} texts occur in more than one split, under different ids")
    if task.note:
        lines.append(f"  {task.note}")
    lines += [f"  {name}  sha256 {digest[:16]}" for name, digest in task.files.items()]
    return "\n".join(lines)


def _imbalance(task: TaskSet, split: str, questions: Sequence[Question]) -> list[str]:
    """Report labels that a split lacks, and a label that most answers have: scores on such a split mean little."""
    if task.kind != "verdict":
        return []
    counts = Counter(question.options[question.answer] for question in questions)
    lines = [f"  {split}: no answer is {label!r}" for label in questions[0].options if not counts[label]]
    label, most = counts.most_common(1)[0]
    if most > MOSTLY * len(questions):
        lines.append(f"  {split}: always answering {label!r} is right in {most / len(questions):.1%}")
    return lines


def label_balance(task: TaskSet, questions: Iterable[Question]) -> dict[str, float]:
    """How often each answer is right, by its text if all questions have the same options, else by its letter."""
    same = len({q.options for split in task.splits for q in task.questions(split)}) == 1
    counts = Counter(q.options[q.answer] if same else LETTERS[q.answer] for q in questions)
    total = sum(counts.values())
    return {label: count / total for label, count in sorted(counts.items())}


def repeated_texts(task: TaskSet) -> int:
    """The number of texts (with their options) that occur in more than one split."""
    splits: dict[str, set[str]] = {}
    for split, examples in task.splits.items():
        for example in examples:
            options = "\0".join(example.options) if isinstance(example, Question) else ""
            splits.setdefault(f"{example.text}\0{options}", set()).add(split)
    return sum(len(names) > 1 for names in splits.values())
