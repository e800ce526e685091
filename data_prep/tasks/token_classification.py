"""Read tagged sentences: entities, or a plain tag per word such as its part of speech.

The format is that of CoNLL's shared tasks, in which biomedical sets are published: one word per line with its tag in
the last column, tabs or blanks between columns, and an empty line between sentences.

    BioBERT's sets (NCBI-disease, BC5CDR, …)   `token<TAB>B`, tags B, I, O; train, devel, test.tsv. Its train_dev.tsv
                                               is train and devel together, and is not read (dmis-lab/biobert)
    cambridgeltl/MTL-Bioinformatics-2016       `token<TAB>B-Disease`, in IOB and in IOBES; `-DOCSTART-<TAB>O` (JNLPBA)
    JNLPBA as its task published it            `token<TAB>B-protein`, documents begin with `###MEDLINE:95369245`
    CoNLL-2003                                 four columns with blanks, `-DOCSTART- -X- -X- O`, scheme IOB1

The schemes are BIO (also called IOB2), BIOES and BILOU, with types (`B-Disease`) or without (`B`); a set without `O`
has plain tags. An `I-` that begins an entity (scheme IOB1) is read as `B-`, as in conlleval, and a note gives the
number of such tags. Any other tag that is not part of an entity of its scheme is refused, because strict scoring would
silently ignore it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from data_prep.common.errors import BadInput
from data_prep.tasks import strict_reading
from data_prep.tasks.task_set import Sentence, TaskSet, file_hashes

NAMES = {"train": ("train",), "dev": ("dev", "devel", "valid"), "test": ("test",)}
SUFFIXES = (".tsv", ".txt", ".conll", ".iob")
SCHEMES = {"IOB2": "BI", "IOBES": "BIES", "BILOU": "BILU"}  # seqeval's name of a scheme -> its letters other than O
TAG = re.compile(r"([BIESLU])(-.+)?")
BLANKS = re.compile(r"[ \t]+")
DOCUMENT = "-DOCSTART-"
# Largest share of a split's sentences with entities that may also be in train, word for word. Among 30 published sets,
# the highest share is 0.4 % (BC2GM). Sentences without entities are not counted, because headings often recur.
LEAKED_SHARE = 0.1

Entity = tuple[str, int, int]  # type, first word, word after the last


def find(folder: Path, split: str) -> Path | None:
    """Find the file of a split; None if there is none.

    Raises:
        BadInput: there are several.
    """
    files = sorted(path for name in NAMES[split] for suffix in SUFFIXES for path in folder.rglob(name + suffix))
    if len(files) > 1:
        raise BadInput(f"{folder} holds {len(files)} files for {split}: {', '.join(map(str, files))}; keep one")
    return files[0] if files else None


def conll(folder: Path) -> TaskSet:
    """Read tagged words from {train,dev,devel,valid,test}.{tsv,txt,conll,iob}.

    Raises:
        BadInput: as in `load`; or the tags have no known scheme or several, an entity violates the scheme, train lacks
            a type, a split has no entities, or too many sentences of a split are in train.
    """
    paths = {split: path for split in NAMES if (path := find(folder, split))}
    if "test" not in paths:
        names = ", ".join(f"test{suffix}" for suffix in SUFFIXES)
        raise BadInput(f"{folder} holds neither test.jsonl (with `source`, `target`) nor tagged words ({names})")
    splits = {split: _sentences(path, split) for split, path in paths.items()}
    everything = [sentence for sentences in splits.values() for sentence in sentences]
    places = _places(everything)
    scheme = scheme_of(places)
    notes = []
    if scheme == "IOB2":
        begun = {split: [_begun(sentence) for sentence in sentences] for split, sentences in splits.items()}
        changed = [(old, new) for s in splits for old, new in zip(splits[s], begun[s], strict=True) if old != new]
        if changed:
            n = sum(a != b for old, new in changed for a, b in zip(old.tags, new.tags, strict=True))
            notes.append(f"{n:,} I tags that begin an entity were read as B (IOB1), first in {changed[0][0].where}")
        splits = begun
    elif scheme:
        tag = next(tag for tag in places if tag[0] in "ESLU")
        for sentence in everything:
            _check_entities(sentence, scheme, f"{tag} in {places[tag]}")
    _check_types(splits)
    notes += _check_leaks(splits, scheme)
    return TaskSet(folder.name, "tags", splits, file_hashes(folder, paths.values()), note="; ".join(notes))


def _sentences(path: Path, split: str) -> list[Sentence]:
    """Read the sentences of a file.

    Before a sentence, a line that begins with # is a comment if its number of columns differs from that of the other
    lines; otherwise # is a word.

    Raises:
        BadInput: a line has another number of columns than the first, a word or tag is missing, or there is no word.
    """
    lines = [line.rstrip(" \t\r") for line in strict_reading.text(path).split("\n")]
    first = next((line for line in lines if line.strip() and not line.startswith(("#", DOCUMENT))), "")
    tabs = "\t" in first
    n_columns = len(_columns(first, tabs))
    sentences: list[Sentence] = []
    words: list[str] = []
    tags: list[str] = []
    begin = 0
    for number, line in enumerate([*lines, ""], start=1):
        columns = _columns(line, tabs)
        if not words and line.startswith("#") and len(columns) != n_columns:
            continue
        if not line.strip() or columns[0] == DOCUMENT:
            if words:
                where = f"{path}, line {begin}"
                sentences.append(Sentence(f"{split}-{len(sentences):05}", tuple(words), tuple(tags), where))
            words, tags = [], []
            continue
        if len(columns) != n_columns or n_columns < 2:
            wanted = f", but the first line has {n_columns}" if n_columns > 1 else ""
            problem = f"{len(columns)} columns{wanted}; a line is a word and, in its last column, its tag"
            raise BadInput(f"{path}, line {number}: {problem}")
        if not columns[0] or not columns[-1]:
            raise BadInput(f"{path}, line {number}: its {'tag' if columns[0] else 'word'} is empty")
        begin = begin if words else number
        words.append(columns[0])
        tags.append(columns[-1])
    if not sentences:
        raise BadInput(f"{path}: it holds no tagged word")
    return sentences


def _columns(line: str, tabs: bool) -> list[str]:
    return line.split("\t") if tabs else BLANKS.split(line.strip(" \t"))


def _places(sentences: Iterable[Sentence]) -> dict[str, str]:
    """The first place (file and line) of each tag."""
    places: dict[str, str] = {}
    for sentence in sentences:
        for n, tag in enumerate(sentence.tags):
            if tag not in places:
                places[tag] = sentence.where_of(n)
    return places


def scheme_of(where: Mapping[str, str]) -> str:
    """The scheme of a set's tags under seqeval's name, `IOB2`, `IOBES` or `BILOU`; empty for plain tags.

    Args:
        where: tag -> file and line of its first occurrence.

    Raises:
        BadInput: the tags have no known scheme, or several.
    """
    matches = {tag: TAG.fullmatch(tag) for tag in where if tag != "O"}
    if "O" not in where and not any(matches.values()):
        return ""
    for tag, match in matches.items():
        if not match:
            raise BadInput(
                f"{where[tag]}: the tag {tag!r} belongs to no known scheme: O with B, I (and E, S or L, U), such as "
                "B-Disease or B; or plain tags, without any O"
            )
    typed = {bool(match[2]): tag for tag, match in matches.items() if match}
    if len(typed) > 1:
        raise BadInput(f"{where[typed[False]]}: the tag {typed[False]!r} has no type, but {typed[True]!r} has one")
    letters = {tag[0] for tag in matches}
    scheme = next((scheme for scheme, known in SCHEMES.items() if letters <= set(known)), None)
    if scheme is None:
        strange = next(tag for tag in matches if tag[0] not in "BIES")
        raise BadInput(f"{where[strange]}: the tag {strange!r} belongs to BILOU, others to BIOES; a set has one scheme")
    return scheme


def _begun(sentence: Sentence) -> Sentence:
    """Replace each I that begins an entity by B."""
    tags = []
    for before, tag in zip(("O", *sentence.tags), sentence.tags, strict=False):
        tags.append(f"B{tag[1:]}" if tag[0] == "I" and (before == "O" or before[1:] != tag[1:]) else tag)
    return Sentence(sentence.id, sentence.words, tuple(tags), sentence.where)


def _check_entities(sentence: Sentence, scheme: str, because: str) -> None:
    """Refuse tags that are not part of an entity of the scheme; `because` is the tag that identified the scheme."""
    covered = {n for _, first, end in entities(sentence.tags, scheme) for n in range(first, end)}
    for n, tag in enumerate(sentence.tags):
        if tag != "O" and n not in covered:
            last, alone = SCHEMES[scheme][2:]
            raise BadInput(
                f"{sentence.where_of(n)}: {tag} of {sentence.words[n]!r} is part of no entity. The tag {because} shows "
                f"that the set is {scheme}, where an entity is {alone} alone, or B, I …, {last} of one type in one "
                "sentence; repair the tags, or use the set's BIO form"
            )


def _check_types(splits: dict[str, list[Sentence]]) -> None:
    """Refuse splits without entities (some projects publish tests without answers) and types that train lacks."""
    kinds = {split: {tag[1:] if TAG.fullmatch(tag) else tag for s in sentences for tag in s.tags if tag != "O"}
             for split, sentences in splits.items()}  # fmt: skip
    for split, types in kinds.items():
        if not types:
            raise BadInput(f"{splits[split][0].where}: {split} has no entity, every tag is O; are its tags withheld?")
        for kind in sorted(types - kinds.get("train", types)):
            where = next(s.where_of(n) for s in splits[split] for n, t in enumerate(s.tags) if t in (kind, t[0] + kind))
            raise BadInput(
                f"{where}: train has no {kind.lstrip('-')}, so that no model can learn to find it; remove it from "
                f"{split}, or use a train file that has it"
            )


def _check_leaks(splits: dict[str, list[Sentence]], scheme: str) -> list[str]:
    """Notes on sentences with entities that are also in train.

    Raises:
        BadInput: there are too many such sentences.
    """
    train = {sentence.words: sentence.where for sentence in splits.get("train", ())}
    notes = []
    for split, sentences in splits.items():
        held = [sentence for sentence in sentences if entities(sentence.tags, scheme)]
        leaked = [sentence for sentence in held if split != "train" and sentence.words in train]
        if not leaked:
            continue
        note = f"{len(leaked):,} of {len(held):,} sentences of {split} that have entities are in train, too"
        if len(leaked) > LEAKED_SHARE * len(held):
            first = leaked[0]
            raise BadInput(f"{first.where}: {note}, the first at {train[first.words]}; remove them from train")
        notes.append(note)
    return notes


def labels(sentences: Sequence[Sentence]) -> tuple[str, ...]:
    """All tags that the scheme allows for the entity types of these sentences, in a fixed order.

    The list includes tags that do not occur, because test may have an I of a type that occurs only with B in train.
    """
    tags = _places(sentences)
    scheme = scheme_of(tags)
    if not scheme:
        return tuple(sorted(tags))
    kinds = sorted({tag[1:] for tag in tags if tag != "O"})
    return ("O", *(letter + kind for kind in kinds for letter in SCHEMES[scheme]))


def entities(tags: Sequence[str], scheme: str) -> set[Entity]:
    """The entities of a sentence by strict rules (seqeval's `mode="strict"`): an I without a B before it is no entity.

    With plain tags, each word is an entity, so that precision, recall and F1 all equal the share of right words.
    """
    if not scheme:
        return {(tag, n, n + 1) for n, tag in enumerate(tags)}
    if all(tag == "O" for tag in tags):
        return set()
    from seqeval import scheme as schemes  # its metrics would import scikit-learn

    spans = schemes.Tokens(list(tags), getattr(schemes, scheme)).entities
    return {(entity.tag, entity.start, entity.end) for entity in spans}


def count(right: Sequence[str], given: Sequence[str], scheme: str) -> dict[str, list[int]]:
    """Counts of a sentence's entities per type: [predicted exactly right, predicted, in the truth]."""
    there, answers = entities(right, scheme), entities(given, scheme)
    counts: dict[str, list[int]] = {}
    for column, group in enumerate((there & answers, answers, there)):
        for kind, _, _ in group:
            counts.setdefault(kind, [0, 0, 0])[column] += 1
    return counts


def balance(sentences: Sequence[Sentence]) -> Counter[str]:
    """The number of entities of each type; the type is `_` if the tags have none."""
    scheme = scheme_of(_places(sentences))
    return Counter(kind for sentence in sentences for kind, _, _ in entities(sentence.tags, scheme))
