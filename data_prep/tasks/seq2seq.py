"""Read pairs of source and target texts: MeQSum, and any JSON lines."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from data_prep.common.bounds import WORKBOOK_BYTES, WORKBOOK_COLUMNS, check_bytes
from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict
from data_prep.tasks import strict_reading
from data_prep.tasks.task_set import Pair, TaskSet, file_hashes, need, split_by_hash, the_file, the_form

SPLITS = ("train", "dev", "test")
# The exceptions that openpyxl raises for a file that is not a workbook or is damaged.
UNREADABLE = (OSError, KeyError, ValueError, TypeError, IndexError, SyntaxError, EOFError, BadZipFile, zlib.error)
MEQSUM_SHARES = {"train": 0.8, "dev": 0.1, "test": 0.1}


def meqsum(folder: Path) -> TaskSet:
    """Read consumer health questions and their summaries, from `meqsum.jsonl` or from the project's workbook.

    The project publishes 1,000 pairs without a split; here, a hash of the id decides the split.

    Raises:
        BadInput: as in `load`.
    """
    form = the_form(folder, {"meqsum.jsonl": ("meqsum.jsonl",), "the project's .xlsx": ("*.xlsx",)})
    path = need(folder, "meqsum.jsonl" if form == "meqsum.jsonl" else "*.xlsx")
    records = strict_reading.json_lines(path) if path.suffix == ".jsonl" else _rows(path)
    splits: dict[str, list[Pair]] = {split: [] for split in SPLITS}
    for where, record in records:
        id_, source, target = (strict_reading.field(record, name, where) for name in ("file", "chq", "summary"))
        splits[split_by_hash(id_, MEQSUM_SHARES)].append(Pair(id_, source, target, where))
    note = "80 / 10 / 10 by a hash of the id: the project publishes no split, so compare with published ROUGE with care"
    return TaskSet("meqsum", "pairs", splits, file_hashes(folder, [path]), note=note)


def _rows(path: Path) -> Iterator[tuple[str, JsonDict]]:
    """The rows of a workbook's first sheet, as mappings from the names in its first row, in lower case."""
    from openpyxl import load_workbook
    from openpyxl.utils.exceptions import InvalidFileException

    try:
        with ZipFile(path) as archive:  # zipfile never unpacks more of a member than this size
            size_bytes = sum(member.file_size for member in archive.infolist())
        check_bytes(size_bytes, WORKBOOK_BYTES, f"{path}, unpacked,", "it is no workbook of questions")
        sheet = load_workbook(path, read_only=True, data_only=True).worksheets[0]
        rows = sheet.iter_rows(values_only=True, max_col=WORKBOOK_COLUMNS)
        names = [str(name).strip().lower() for name in next(rows, ())]
        for number, row in enumerate(rows, start=2):
            if any(cell is not None for cell in row):
                yield f"{path}, row {number}", dict(zip(names, row, strict=False))
    except (*UNREADABLE, InvalidFileException) as error:
        raise BadInput(f"{path} is not a readable workbook ({error})") from None


def jsonl(folder: Path) -> TaskSet:
    """Read {train,dev,test}.jsonl, whose lines hold `source`, `target` and optionally `id`.

    Raises:
        BadInput: as in `load`.
    """
    paths = {split: path for split in SPLITS if (path := the_file(folder, f"{split}.jsonl", optional=split != "test"))}
    splits = {
        split: [
            Pair(
                strict_reading.id_of(record, f"{split}-{number:05}", where),
                strict_reading.field(record, "source", where),
                strict_reading.field(record, "target", where),
                where,
            )
            for number, (where, record) in enumerate(strict_reading.json_lines(path))
        ]
        for split, path in paths.items()
    }
    return TaskSet(folder.name, "pairs", splits, file_hashes(folder, paths.values()))
