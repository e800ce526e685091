"""The second pass of a corpus build: decide which entries stay, by one rule after another (duplicates, overlap …).

A table on disk holds the entries without their texts. Each rule marks the entries that it drops with its reason. SQLite
sorts and joins on disk with a fixed cache, so that memory does not grow with the corpus.
"""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from tqdm import tqdm

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict
from data_prep.filtering import near_duplicates, spool
from data_prep.filtering.spool import Batch
from data_prep.running.progress import Done
from data_prep.sources.document import ABSTRACTS, ARTICLES, DELETED

CACHE_KIB = 64 << 10
SPLITS = ("val", "train", "recent")  # a text that occurs in several splits stays in the first of them
AT_A_TIME = 1000  # entries per insert
OVERLAP = "overlap with evaluation texts"

SCHEMA = """
CREATE TABLE entries (
    number INTEGER PRIMARY KEY,     -- number over all batches, in order
    batch INTEGER, entry INTEGER,   -- number of the batch, and number within the batch
    revises INTEGER,                -- whether later entries of the source replace earlier ones
    bucket INTEGER, id TEXT, version INTEGER, file TEXT,
    reason TEXT,                    -- why the entry was dropped; NULL if it stays
    text BLOB, pmid INTEGER, source TEXT, date TEXT, split INTEGER
);
CREATE TABLE grams (number INTEGER, gram INTEGER);  -- grams of evaluation texts in each document
CREATE TABLE signatures (number INTEGER PRIMARY KEY, signature BLOB);
CREATE TABLE bands (band INTEGER, number INTEGER);  -- bands of the signatures
CREATE TABLE excluded (pmid INTEGER PRIMARY KEY);
CREATE TABLE frames (bucket INTEGER, batch INTEGER, offset INTEGER, bytes INTEGER);
"""


class Selection:
    """The table of entries and the rules on it; a context manager that removes the table at the end."""

    def __init__(self, folder: Path):
        self._path = folder / "entries.sqlite"
        self._path.unlink(missing_ok=True)
        os.environ["SQLITE_TMPDIR"] = str(folder)
        self._db = sqlite3.connect(self._path, isolation_level=None)
        self._db.executescript(
            f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA temp_store=FILE; PRAGMA cache_size=-{CACHE_KIB};"
        )
        self._db.executescript(SCHEMA)

    def __enter__(self) -> Selection:
        return self

    def __exit__(self, *error: object) -> None:
        self._db.close()
        self._path.unlink(missing_ok=True)

    def load(self, batches: Sequence[Batch], folder: Path) -> None:
        """Load the rows and frames of all batches, in order."""
        self._db.execute("BEGIN")
        total = 0
        entries: list[tuple[object, ...]] = []
        for number, batch in enumerate(tqdm(batches, desc="index", unit=" batches", disable=None)):
            for entry, row in enumerate(spool.rows(batch, folder)):
                total += 1
                text, split = row.get("text"), row.get("split")
                entries.append(
                    (
                        total,
                        number,
                        entry,
                        batch.source.newest_wins,
                        *map(row.get, ("bucket", "id", "version", "file", "reason")),
                        bytes.fromhex(text) if text else None,
                        *map(row.get, ("pmid", "source", "date")),
                        SPLITS.index(split) if split else None,
                    )
                )
                if len(entries) == AT_A_TIME:
                    self._insert(entries)
                if row.get("signature"):
                    signature = bytes.fromhex(row["signature"])
                    self._db.execute("INSERT INTO signatures VALUES (?,?)", (total, signature))
                    for band in near_duplicates.bands(signature):
                        self._db.execute("INSERT INTO bands VALUES (?,?)", (band, total))
                for gram in row.get("grams", ()):
                    self._db.execute("INSERT INTO grams VALUES (?,?)", (total, gram))
            self._insert(entries)
            frames = spool.summary(batch, folder)["frames"]
            self._db.executemany(
                "INSERT INTO frames VALUES (?,?,?,?)", ((bucket, number, *place) for bucket, *place in frames)
            )
        self._db.execute("CREATE INDEX frames_by_bucket ON frames(bucket, batch, offset)")
        self._db.execute("COMMIT")

    def _insert(self, entries: list[tuple[object, ...]]) -> None:
        self._db.executemany("INSERT INTO entries VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)", entries)
        entries.clear()

    def drop_superseded(self) -> None:
        """Drop outdated entries of sources that revise their records.

        Of several entries with the same id and version, the last one stays, even if it is not a document. Of several
        versions of an id, the highest one that was not deleted stays.
        """
        later = "LEAD(number) OVER (PARTITION BY id{} ORDER BY {})"
        self._drop(
            "superseded",
            f"SELECT number FROM (SELECT number, revises, {later.format(', version', 'number')} AS later FROM entries) "
            "WHERE revises AND later IS NOT NULL",
        )
        self._drop(
            "superseded",
            f"SELECT number FROM (SELECT number, {later.format('', 'version')} AS later FROM entries "
            "WHERE revises AND (reason IS NULL OR reason NOT IN ('superseded', ?))) WHERE later IS NOT NULL",
            (DELETED,),
        )

    def drop_repeated_ids(self, skip: bool) -> list[JsonDict]:
        """Drop an entry whose id occurred before with the same text; another text for the same id is bad input.

        Returns:
            If `skip` is set, the entries with another text, as bad records.

        Raises:
            BadInput: an id has two texts and `skip` is not set.
        """
        self._db.execute(
            "CREATE TEMP TABLE again AS SELECT number, id, file, first, text IS same AS alike FROM "
            "(SELECT number, id, file, text, "
            "FIRST_VALUE(text) OVER w AS same, FIRST_VALUE(file) OVER w AS first, ROW_NUMBER() OVER w AS turn "
            "FROM entries WHERE reason IS NULL OR reason NOT IN ('superseded', ?) "
            "WINDOW w AS (PARTITION BY id ORDER BY number)) WHERE turn > 1",
            (DELETED,),
        )
        other = self._db.execute("SELECT id, file, first FROM again WHERE NOT alike ORDER BY number").fetchall()
        if other and not skip:
            id, file, first = other[0]
            raise BadInput(
                f"there are two texts for {id}, in {first} and in {file} ({len(other):,} such); "
                "give each document an id of its own, or keep only the first with --on-error skip"
            )
        self._drop("bad records", "SELECT number FROM again WHERE NOT alike")
        self._drop("duplicates", "SELECT number FROM again WHERE alike")
        return [
            {"file": file, "place": id, "problem": f"another text for it is in {first}"} for id, file, first in other
        ]

    def drop_pmids(self, pmids: Iterable[int]) -> None:
        """Drop abstracts with these PubMed numbers, and the articles that the abstracts belong to."""
        self._db.executemany("INSERT OR IGNORE INTO excluded VALUES (?)", ((pmid,) for pmid in pmids))
        self._drop(
            "held out by PMID",
            "SELECT number FROM entries WHERE reason IS NULL AND pmid IN (SELECT pmid FROM excluded)",
        )

    def drop_old(self, day: str) -> None:
        """Drop entries that are not dated after a day, also those dated by a month or year that contains the day."""
        self._drop(
            "without a date, so not known to be after --dated-after",
            "SELECT number FROM entries WHERE reason IS NULL AND date IS NULL",
        )
        self._drop(
            "not known to be after --dated-after",
            "SELECT number FROM entries WHERE reason IS NULL AND substr(date || '-01-01', 1, 10) <= ?",
            (day,),
        )

    def part_recent(self, day: str) -> None:
        """Move entries dated after a day to `recent`; drop those dated by a month or year that contains the day."""
        self._db.execute(
            "UPDATE entries SET split = 2 WHERE reason IS NULL AND substr(date || '-01-01', 1, 10) > ?", (day,)
        )
        self._drop(
            "before or after --recent-after",
            "SELECT number FROM entries WHERE reason IS NULL AND split < 2 AND "
            "CASE length(date) WHEN 4 THEN date || '-12-31' "
            "WHEN 7 THEN date(date || '-01', '+1 month', '-1 day') ELSE date END > ?",
            (day,),
        )

    def drop_near_duplicates(self, threshold: float) -> None:
        """Drop a text if its likeness to the first text with a common band is at least `threshold`.

        The first text is the first by split, val before train, and then by id.
        """
        self._db.execute("CREATE TEMP TABLE near (number INTEGER PRIMARY KEY)")
        pairs = self._db.execute(
            "SELECT pairs.number, one.signature, other.signature FROM (SELECT DISTINCT number, first FROM ("
            "SELECT number, FIRST_VALUE(number) OVER (PARTITION BY band ORDER BY split, id) AS first "
            "FROM bands JOIN entries USING (number) WHERE reason IS NULL) WHERE number != first) AS pairs "
            "JOIN signatures AS one ON one.number = pairs.number JOIN signatures AS other ON other.number = pairs.first"
        )
        for number, one, other in pairs:
            if near_duplicates.likeness(one, other) >= threshold:
                self._db.execute("INSERT OR IGNORE INTO near VALUES (?)", (number,))
        self._drop("near-duplicates", "SELECT number FROM near")

    def drop_overlaps(self, common: int) -> int:
        """Drop documents that contain a gram of an evaluation text, unless more than `common` documents contain it.

        The rule is repeated until nothing changes, because a common gram may become rare when documents are dropped. In
        the end each gram occurs in more than `common` documents or in none, as the leak report expects.

        Returns:
            The number of common grams.
        """
        self._db.execute("CREATE TEMP TABLE common (gram INTEGER PRIMARY KEY)")
        dropped = 1
        while dropped:
            self._db.execute("DELETE FROM common")
            self._db.execute(
                "INSERT INTO common SELECT gram FROM grams JOIN entries USING (number) WHERE reason IS NULL "
                "GROUP BY gram HAVING COUNT(*) > ?",
                (common,),
            )
            dropped = self._drop(
                OVERLAP,
                "SELECT number FROM entries WHERE reason IS NULL AND number IN "
                "(SELECT number FROM grams WHERE gram NOT IN (SELECT gram FROM common))",
            )
        return self._db.execute("SELECT COUNT(*) FROM common").fetchone()[0]

    def overlaps(self, grams: Mapping[str, Iterable[int]]) -> Counter[str]:
        """The number of dropped documents that overlap with each evaluation file; one document may count for several.

        Args:
            grams: file name -> numbers of its grams.
        """
        self._db.execute("CREATE TEMP TABLE of_file (gram INTEGER PRIMARY KEY)")
        counts = Counter[str]()
        for name, numbers in grams.items():
            self._db.execute("DELETE FROM of_file")
            self._db.executemany("INSERT OR IGNORE INTO of_file VALUES (?)", ((number,) for number in numbers))
            counts[name] = self._db.execute(
                "SELECT COUNT(DISTINCT number) FROM grams JOIN of_file USING (gram) JOIN entries USING (number) "
                "WHERE reason = ? AND gram NOT IN (SELECT gram FROM common)",
                (OVERLAP,),
            ).fetchone()[0]
        return counts

    def without(self, column: str) -> int:
        """The number of remaining documents that have no value in a column, `pmid` or `date`."""
        return self._db.execute(f"SELECT COUNT(*) FROM entries WHERE reason IS NULL AND {column} IS NULL").fetchone()[0]

    def drop_abstracts_of_articles(self) -> None:
        """Drop an abstract if its full article stays, as in the Pile; both records have the same PubMed number."""
        self._drop(
            "abstracts of articles",
            "SELECT number FROM entries WHERE reason IS NULL AND source = ? AND pmid IN "
            "(SELECT pmid FROM entries WHERE reason IS NULL AND source = ?)",
            (ABSTRACTS, ARTICLES),
        )

    def drop_same_texts(self) -> None:
        """Keep one of several texts that differ only in case and white space: the first by split (val first) and id."""
        self._drop(
            "same text",
            "SELECT number FROM (SELECT number, ROW_NUMBER() OVER (PARTITION BY text ORDER BY split, id) AS turn "
            "FROM entries WHERE reason IS NULL) WHERE turn > 1",
        )

    def fill_val(self, least: int) -> None:
        """Move documents from train to val, in order of a hash of their ids, until val has `least` documents."""
        missing = least - self.documents().get("val", 0)
        if missing > 0:
            moved = self._db.execute("SELECT id, number FROM entries WHERE reason IS NULL AND split = 1").fetchall()
            moved.sort(key=lambda one: spool.share_of(one[0]))
            self._db.executemany("UPDATE entries SET split = 0 WHERE number = ?", ((n,) for _, n in moved[:missing]))

    def dropped(self) -> Counter[str]:
        """The number of dropped entries by reason."""
        return Counter(
            dict(self._db.execute("SELECT reason, COUNT(*) FROM entries WHERE reason IS NOT NULL GROUP BY reason"))
        )

    def documents(self) -> dict[str, int]:
        """The number of remaining documents by split."""
        counts = self._db.execute("SELECT split, COUNT(*) FROM entries WHERE reason IS NULL GROUP BY split")
        return {SPLITS[split]: count for split, count in counts}

    def chosen(self) -> Iterator[tuple[int, dict[int, dict[int, str]]]]:
        """The remaining entries: each bucket, in order, with batch -> entry -> split."""
        query = "SELECT bucket, batch, entry, split FROM entries WHERE reason IS NULL ORDER BY bucket, batch, entry"
        for bucket, members in groupby(self._db.execute(query), key=lambda row: row[0]):
            chosen: dict[int, dict[int, str]] = {}
            for _, batch, entry, split in members:
                chosen.setdefault(batch, {})[entry] = SPLITS[split]
            yield bucket, chosen

    def frames(self, bucket: int, batch: int) -> list[tuple[int, int]]:
        """Offset and size of each frame of a batch that belongs to a bucket."""
        query = "SELECT offset, bytes FROM frames WHERE bucket = ? AND batch = ? ORDER BY offset"
        return self._db.execute(query, (bucket, batch)).fetchall()

    def frame_bytes(self, done: Iterable[int]) -> tuple[int, Done]:
        """The bytes of all frames, and the bytes of the frames in finished buckets."""
        sizes = dict(self._db.execute("SELECT bucket, SUM(bytes) FROM frames GROUP BY bucket"))
        return sum(sizes.values()), Done(sum(sizes.get(bucket, 0) for bucket in done))

    def _drop(self, reason: str, numbers: str, values: Iterable[object] = ()) -> int:
        done = self._db.execute(f"UPDATE entries SET reason = ? WHERE number IN ({numbers})", (reason, *values))
        return done.rowcount
