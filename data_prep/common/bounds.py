"""How much is taken from what others made, files and servers, so that none of it fills memory, the disk or the time.

They hold a worker below a gigabyte. Each is above the greatest honest thing that is known, which its comment names, and
docs/operations.md has them in a table.
"""

from __future__ import annotations

from data_prep.common.errors import BadInput

MIB = 1 << 20

# Packed files.
# What unpacking keeps of what came before: 128 MiB is the most that the `zstd` command itself takes unasked, and is
# `--long=27`; the highest level of `xz` has 64 MiB.
WINDOW_BYTES = 128 * MIB
# Unpacked at a time: a block of zstd has 4 bytes at the least and unpacks to 128 KiB at the most: 128 MiB in all.
PACKED_BYTES = 4096

# What a file unpacks to: one of 49 KB can hold billions of line ends, each of which takes its time. JSON lines pack
# to a tenth, lines that differ in a number alone to a hundredth.
UNPACKED_BYTES = 96 * MIB
UNPACKED_TIMES = 250  # its size, beside these bytes

# Records.
# A line of JSON, a plain text, a text in a row: the longest of the Pile have some 30 MB. One rare character, and Python
# keeps a text at four bytes a character, some three times over.
RECORD_BYTES = 64 * MIB
# Lists and objects, and values, in one JSON text: a list takes 56 bytes for the two of `[]`, an object up to 240.
JSON_CONTAINERS = 1_000_000
JSON_VALUES = 4_000_000
JSON_DEPTH = 64  # of a manifest, an index, a configuration: theirs are 5 deep
# A file that is one JSON value: the manifest or the index of the 9,000 shards of 300 billion tokens has 4 MB; a
# tokenizer.json 33 MB (Gemma 3).
JSON_BYTES = 64 * MIB
# A token that a tokenizer adds to its vocabulary, and all of them: the library `tokenizers` takes the square of the
# longest one's length in time, 2 s for 8,000. The longest honest one has some 40; Gemma 3 adds 6,400 short ones.
ADDED_TOKEN_CHARACTERS = 256
ADDED_TOKENS_CHARACTERS = MIB
# An article, or a citation of PubMed, in XML: the longest articles of PMC have some 30 MB, most of it tables, and a
# citation with 15,000 authors 10 MB. libxml2 takes some 240 bytes for each tag and attribute: for each `<` and `=`.
XML_BYTES = 64 * MIB
XML_MARKS = 1_500_000  # and so many `&`: an entity that is declared elsewhere takes as much
ENTITY_CHARACTERS = MIB  # of what the names of entities in a record stand for, most of them one sign
TAR_HEADER_BYTES = MIB  # before a member: paths have 4,096 bytes at the most
METADATA_BYTES = MIB  # that the bucket has of an article: some two kilobytes
MD5_BYTES = 64 << 10  # NLM's are 60 bytes, lists of a folder some thousand
# Reading a Parquet file, over what was held before. A page is unpacked whole, and one that is a dictionary, as
# pyarrow makes of the first 1,024 rows whatever their size, is copied: 150 rows of 1.8 MB take 720 MB.
PARQUET_BYTES = 850 * MIB
PARQUET_BATCH_BYTES = 16 * MIB  # of rows that are turned into Python's objects together

BAD_RECORDS = (
    20_000  # of a batch of files that `--on-error skip` leaves out and lists; more, and the rest of a file goes
)

# Servers.
# PubMed's listings have some 300 KB; a page of a dataset's 300 KB; the manifest of PMC's inventory 10 KB.
LISTING_BYTES = 32 * MIB
LISTED_FILES = 100_000  # PubMed's two folders hold some 3,000 files
PAGES = 1_000  # of a listing; one has 1,000 files
SMALL_ARTICLE_BYTES = 8 * MIB  # what each of the threads of acquire.py may hold; larger ones come one after the other
FILE_BYTES = 16 << 30  # of a file whose size is not listed; the largest of the Pile have 15 GB, PubMed's 70 MB
LISTED_SHARE = 1.5  # of a size that is listed to two digits
INVENTORY_ROWS = 100_000_000  # there are some 8 million
# A connection that brings less than this for so long is given up and made anew.
LEAST_BYTES_PER_S = 1_000
RATE_WINDOW_S = 60.0
HEADERS_S = 90.0  # from a request to the end of the headers that answer it
REDIRECTS = 5  # in a row; the hub takes one or two

# Question sets: the largest, MedMCQA's train.json, has 137 MB; MeQSum's workbook 2 MB unpacked.
TASK_FILE_BYTES = 256 * MIB
WORKBOOK_BYTES = 64 * MIB
WORKBOOK_COLUMNS = 256

# A configuration: the longest here has 5,000 characters, and is 3 deep.
YAML_CHARACTERS = 1_000_000
YAML_DEPTH = 32
YAML_VALUES = 100_000


def check_bytes(size_bytes: int, limit: int, where: str, way_out: str) -> None:
    """Refuse what is larger than it may be.

    Raises:
        BadInput: `size_bytes` is above `limit`.
    """
    if size_bytes > limit:
        raise BadInput(f"{where} has more than {limit:,} bytes; {way_out}")
