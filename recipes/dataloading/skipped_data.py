"""The data that a run skipped after loss spikes: `skipped.jsonl` in its folder, with one line for each rewind.

Each line names a file beside it, `skipped-1.jsonl.zst` and so on. That file has the folders of token shards, and the
ids of the skipped samples and documents in them.

A window is `(epoch, first, end)`: positions `first` to `end - 1` of that epoch's sample order. Positions do not depend
on the number of ranks or the batch size. The loader skips them, so a run that is resumed or rewound again never reads
them.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from data_prep.common import json_text
from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict, write_text
from data_prep.common.json_text import Shape, check_shape
from data_prep.files import json_lines
from data_prep.sharding.shard_format import read_documents

LEDGER, DETAILS = "skipped.jsonl", "skipped-*.jsonl.zst"
ENTRY: Shape = {"from_batch": int, "to_batch": int, "windows": [[int]]}
Window = tuple[int, int, int]  # epoch, first position, end


def read(folder: Path) -> list[JsonDict]:
    """Read the entries of a run's skipped.jsonl, oldest first; none if the run was never rewound.

    Raises:
        BadInput: a line is damaged. If the line were ignored, the run would train on the skipped data.
    """
    path = folder / LEDGER
    entries = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else [], start=1):
        where = f"{path}, line {number}"
        try:
            entry = json_text.loads(line)
            check_shape(entry, ENTRY, where)
            entry["windows"] = [(epoch, first, end) for epoch, first, end in entry["windows"]]
        except ValueError as error:
            raise BadInput(f"{where}: not an entry of skipped data ({error}); restore or remove the line") from None
        entries.append(entry)
    return entries


def append(folder: Path, entry: JsonDict, left_out: Mapping[Path, tuple[Sequence[int], Sequence[str]]]) -> None:
    """Add an entry and its skipped data. When the function returns, the whole entry is on disk.

    Args:
        folder: folder of the run.
        entry: entry of the form `ENTRY`.
        left_out: folder of token shards -> ids of the skipped samples and documents in it.
    """
    path = folder / LEDGER
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    details = folder / DETAILS.replace("*", str(before.count("\n") + 1))
    with json_lines.Writer(details) as writer:
        for shards, (samples, documents) in left_out.items():
            for sample in samples:
                writer.write({"shards": str(shards), "sample": sample})
            for document in documents:
                writer.write({"shards": str(shards), "document": document})
    samples, documents = (sum(len(of[n]) for of in left_out.values()) for n in (0, 1))
    counts = {"samples": samples, "documents": documents, "details": details.name}
    write_text(path, f"{before}{json.dumps({**entry, **counts})}\n")


def merge(windows: Iterable[Window]) -> list[Window]:
    """Merge windows that overlap or touch, and sort them."""
    merged: list[Window] = []
    for epoch, first, end in sorted(windows):
        if merged and merged[-1][0] == epoch and first <= merged[-1][2]:
            merged[-1] = (epoch, merged[-1][1], max(end, merged[-1][2]))
        elif first < end:
            merged.append((epoch, first, end))
    return merged


def position(windows: Sequence[Window], epoch: int, samples: int) -> int:
    """Position of the next sample that is not skipped, after `samples` of an epoch were trained on.

    Args:
        windows: windows as `merge` returns them.
        epoch: number of the epoch, from 0.
        samples: number of samples of that epoch, over all ranks, that the run trained on.
    """
    at = samples
    for _, first, end in (window for window in windows if window[0] == epoch):
        if first > at:
            break
        at += end - first
    return at


def is_skipped(windows: Sequence[Window], epoch: int, at: int) -> bool:
    """Whether a position is skipped."""
    return any(window[0] == epoch and window[1] <= at < window[2] for window in windows)


def documents_of(folder: Path, samples: Sequence[int], seq_len: int) -> list[str]:
    """Ids of the documents that have a token in one of the samples. Reads the split's whole list of documents.

    Args:
        folder: folder of the split within the folder of token shards.
        samples: ids of samples.
        seq_len: tokens of a sample.

    Raises:
        BadInput: the list is damaged or missing.
    """
    wanted = sorted(samples)
    ids = []
    for start, record in read_documents(folder):
        first, last = start // seq_len, (start + record["tokens"] - 1) // seq_len
        at = bisect.bisect_left(wanted, first)
        if at < len(wanted) and wanted[at] <= last:
            ids.append(record["id"])
    return ids
