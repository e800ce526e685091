"""Question sets, source -> target sets and tagged sentences, read from the files that their projects publish.

    folder      files, anywhere below it                                                    splits
    medqa       phrases_no_exclude_{train,dev,test}.jsonl; or {train,dev,test}.json of
                lines `sent1`, `ending0` …, `label` (stanford-crfm/BioMedLM, finetune/mc)   train dev test
    medmcqa     {train,dev}.json, one JSON a line, `cop` from 1 (medmcqa/medmcqa)           train dev
    pubmedqa    ori_pqal.json, test_ground_truth.json, pqal_fold0/{train,dev}_set.json      train dev test
    bioasq      *train*.json, [*dev*.json], *golden*.json of BioASQ task b, yes/no only     train dev test
    mmlu        SUBJECT_{dev,val,test}.csv without header, six medical subjects             dev val test
    meqsum      meqsum.jsonl, or the project's .xlsx (abachaa/MeQSum)                       train dev test, ours
    other       {train,dev,test}.jsonl of lines `source`, `target`; or words and their
                tags in {train,dev,devel,valid,test}.{tsv,txt,conll,iob} (tags.py)          train dev test

Every fault names the file and the line or record.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.stage import BadInput, sha256_file


@dataclass(frozen=True, slots=True)
class Question:
    """A question with one right answer.

    Attributes:
        id: unique in its set.
        question: what is asked.
        options: what can be answered, in the order of the labels.
        answer: index of the right option.
        where: file and line, for messages.
        context: text to answer from; empty where there is none.
        subject: the part of the set that is scored by itself, such as an MMLU subject; empty where there is none.
        pmids: the PubMed abstracts that the question or its context was made of.
    """

    id: str
    question: str
    options: tuple[str, ...]
    answer: int
    where: str
    context: str = ""
    subject: str = ""
    pmids: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """All that is read to answer it."""
        return f"{self.context}\n{self.question}".strip()


@dataclass(frozen=True, slots=True)
class Pair:
    """A text and what is to be written from it."""

    id: str
    source: str
    target: str
    where: str
    pmids: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """All that is read."""
        return self.source


@dataclass(frozen=True, slots=True)
class Sentence:
    """Words and their tags.

    Attributes:
        id: unique in its set.
        words: as they stand in the file, one a line.
        tags: one a word.
        where: file and line of the first word, for messages.
    """

    id: str
    words: tuple[str, ...]
    tags: tuple[str, ...]
    where: str

    @property
    def text(self) -> str:
        """All that is read."""
        return " ".join(self.words)

    def where_of(self, word: int) -> str:
        """File and line of a word."""
        path, _, line = self.where.rpartition(" ")
        return f"{path} {int(line) + word}"


Examples = Sequence[Question] | Sequence[Pair] | Sequence[Sentence]
Splits = dict[str, list[Question]] | dict[str, list[Pair]] | dict[str, list[Sentence]]


@dataclass(frozen=True)
class TaskSet:
    """One set.

    Attributes:
        name: such as `medqa`.
        kind: `choice` (each question has its own options), `verdict` (all have the same ones), `pairs` or `tags`.
        splits: split name -> examples (`Question`; `Pair` in `pairs`, `Sentence` in `tags`), in the order of the files.
        files: file name below the set's folder -> SHA-256.
        scored: the split that published numbers are of.
        note: what a reader of scores should know of the splits.
    """

    name: str
    kind: str
    splits: Splits
    files: dict[str, str]
    scored: str = "test"
    note: str = ""

    def questions(self, split: str) -> list[Question]:
        """The questions of a split.

        Raises:
            BadInput: there is no such split, or the set is of pairs.
        """
        return [example for example in self._split(split) if isinstance(example, Question)]

    def pairs(self, split: str) -> list[Pair]:
        """The pairs of a split.

        Raises:
            BadInput: there is no such split.
        """
        return [example for example in self._split(split) if isinstance(example, Pair)]

    def sentences(self, split: str) -> list[Sentence]:
        """The tagged sentences of a split.

        Raises:
            BadInput: there is no such split.
        """
        return [example for example in self._split(split) if isinstance(example, Sentence)]

    def _split(self, split: str) -> Examples:
        if split not in self.splits:
            raise BadInput(f"{self.name} has no {split} split here; it has {', '.join(self.splits)}")
        return self.splits[split]


def load(name: str, data: Path) -> TaskSet:
    """Read and check the set `name`, from the folder of that name in `data`.

    Raises:
        BadInput: the folder or a file is missing, or a record of it cannot be used.
    """
    from data_prep.tasks import choices, pairs, verdicts

    readers: dict[str, Callable[[Path], TaskSet]] = {
        "medqa": choices.medqa,
        "medmcqa": choices.medmcqa,
        "mmlu": choices.mmlu,
        "pubmedqa": verdicts.pubmedqa,
        "bioasq": verdicts.bioasq,
        "meqsum": pairs.meqsum,
    }
    folder = data / name
    if not folder.is_dir():
        raise BadInput(f"{folder} does not exist; {name} is read from there (its files: data_prep/tasks/__init__.py)")
    task = readers.get(name, _own)(folder)
    _check(task)
    return task


def _own(folder: Path) -> TaskSet:
    """A set of no name known here: pairs, or tagged words."""
    from data_prep.tasks import pairs, tags

    pair_file, tagged_file = the_file(folder, "test.jsonl", optional=True), tags.find(folder, "test")
    if pair_file and tagged_file:
        raise BadInput(f"{folder} holds both {pair_file.name} and {tagged_file.name}; keep one")
    return pairs.jsonl(folder) if pair_file else tags.conll(folder)


def _check(task: TaskSet) -> None:
    """Refuse what every format must not have: empty splits, empty texts, answers without option, ids twice."""
    seen: dict[str, str] = {}
    for split, examples in task.splits.items():
        if not examples:
            raise BadInput(f"{task.name}: its {split} split is empty")
        for example in examples:
            where = f"{example.where} ({example.id})"
            if example.id in seen:
                raise BadInput(f"{where}: this id is also that of {seen[example.id]}; each belongs to one split, once")
            seen[example.id] = f"{split}, {example.where}"
            if isinstance(example, Question):
                _check_question(example, where)
            elif isinstance(example, Pair) and not (example.source.strip() and example.target.strip()):
                raise BadInput(f"{where}: its {'target' if example.source.strip() else 'source'} is empty")


def _check_question(question: Question, where: str) -> None:
    if not question.question.strip():
        raise BadInput(f"{where}: the question is empty")
    if len(question.options) < 2:
        raise BadInput(f"{where}: {len(question.options)} options; a question needs two or more")
    if blank := [n for n, option in enumerate(question.options, 1) if not option.strip()]:
        raise BadInput(f"{where}: option {blank[0]} is empty")
    if not 0 <= question.answer < len(question.options):
        raise BadInput(f"{where}: the answer is option {question.answer + 1} of {len(question.options)}")


def describe(task: TaskSet) -> str:
    """Counts, balance of labels or entities, texts that occur twice, and hashes, as lines to print."""
    from data_prep.tasks import tags

    lines = [f"{task.name}: {', '.join(f'{split} {len(examples):,}' for split, examples in task.splits.items())}"]
    for split, examples in task.splits.items():
        questions = [example for example in examples if isinstance(example, Question)]
        if questions:
            shares = ", ".join(f"{label} {share:.1%}" for label, share in label_balance(task, questions).items())
            lines.append(f"  {split}: {shares}")
        if sentences := [example for example in examples if isinstance(example, Sentence)]:
            words, counts = sum(len(sentence.words) for sentence in sentences), tags.balance(sentences)
            shares = ", ".join(f"{kind} {n:,} ({n / counts.total():.1%})" for kind, n in sorted(counts.items()))
            lines.append(f"  {split}: {words:,} words, {counts.total():,} entities: {shares}")
    if twice := repeated_texts(task):
        lines.append(f"  {twice:,} texts occur in more than one split, under different ids")
    if task.note:
        lines.append(f"  {task.note}")
    lines += [f"  {name}  sha256 {digest[:16]}" for name, digest in task.files.items()]
    return "\n".join(lines)


def label_balance(task: TaskSet, questions: Iterable[Question]) -> dict[str, float]:
    """Share of each right answer: of the option's letter in `choice`, of its text in `verdict`."""
    counts = Counter("ABCDEFGH"[q.answer] if task.kind == "choice" else q.options[q.answer] for q in questions)
    total = sum(counts.values())
    return {label: count / total for label, count in sorted(counts.items())}


def repeated_texts(task: TaskSet) -> int:
    """Texts (with their options) that two splits share."""
    splits: dict[str, set[str]] = {}
    for split, examples in task.splits.items():
        for example in examples:
            options = "\0".join(example.options) if isinstance(example, Question) else ""
            splits.setdefault(f"{example.text}\0{options}", set()).add(split)
    return sum(len(found) > 1 for found in splits.values())


def file_hashes(folder: Path, paths: Iterable[Path]) -> dict[str, str]:
    """Names below `folder` and SHA-256 of the files that a set was read from."""
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in paths}


def the_file(folder: Path, pattern: str, optional: bool = False) -> Path | None:
    """The one file below `folder` whose name matches; None if there is none and it is optional.

    Raises:
        BadInput: there is none, or there are several.
    """
    found = sorted(path for path in folder.rglob(pattern) if path.is_file())
    if len(found) > 1:
        raise BadInput(f"{folder} holds {pattern} {len(found)} times: {', '.join(map(str, found))}; keep one")
    if not found and not optional:
        raise BadInput(f"{folder} holds no {pattern}")
    return found[0] if found else None


def split_by_hash(id_: str, shares: dict[str, float]) -> str:
    """The split of an id where a set has no official one: from the id alone, so that files' order cannot move it."""
    place = int.from_bytes(hashlib.sha256(id_.encode()).digest()[:8], "big") / 2**64
    for split, share in shares.items():
        place -= share
        if place < 0:
            return split
    return next(reversed(shares))
