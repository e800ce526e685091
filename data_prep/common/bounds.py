"""Limits on input from foreign files and servers, so that no input can fill memory or disk, or take for ever.

The limits keep a worker below a gigabyte of memory. Each limit is above the largest genuine input that is known; the
comment beside it names that input. docs/operations.md lists the limits in a table.
"""

from __future__ import annotations

from data_prep.common.errors import BadInput

MIB = 1 << 20

# Compressed files.
# Decompression window. By default, the `zstd` command accepts at most 128 MiB (`--long=27`); the highest level of `xz`
# has 64 MiB.
WINDOW_BYTES = 128 * MIB
# Compressed bytes given to the decompressor at a time. A zstd block has at least 4 bytes and unpacks to at most 128
# KiB, so one such piece unpacks to at most 128 MiB.
PACKED_BYTES = 4096

# Limit on what a file unpacks to. A file of 49 KB can hold billions of line ends, and each of them takes time. JSON
# lines compress to a tenth, and lines that differ only in a number to a hundredth.
UNPACKED_BYTES = 96 * MIB
UNPACKED_TIMES = 250  # times the compressed size, on top of UNPACKED_BYTES

# Records.
# A line of JSON, a plain text file, or a text in a row of a table. The longest ones in the Pile have some 30 MB. A
# single rare character makes Python store the whole text with four bytes per character, and some three copies exist at
# once.
RECORD_BYTES = 64 * MIB
# Lists and objects, and values, in one JSON text: the two bytes `[]` become a list of 56 bytes, an object up to 240.
JSON_CONTAINERS = 1_000_000
JSON_VALUES = 4_000_000
JSON_DEPTH = 64  # nesting of a manifest, an index or a configuration; genuine ones are 5 deep
# A file that is one JSON value. The manifest or the index of 9,000 shards with 300 billion tokens has 4 MB; the
# tokenizer.json of Gemma 3 has 33 MB.
JSON_BYTES = 64 * MIB
# Characters of one token that a tokenizer adds to its vocabulary, and of all added tokens together. The time that the
# library `tokenizers` takes grows with the square of the longest added token: 2 s for 8,000 characters. The longest
# genuine one has some 40 characters; Gemma 3 adds 6,400 short ones.
ADDED_TOKEN_CHARACTERS = 256
ADDED_TOKENS_CHARACTERS = MIB
# An article of PMC or a citation of PubMed, in XML. The longest articles have some 30 MB, most of it tables; a citation
# with 15,000 authors has 10 MB. libxml2 takes some 240 bytes for each tag and attribute, that is for each `<` and `=`.
XML_BYTES = 64 * MIB
XML_MARKS = 1_500_000  # `&` counts too: a reference to an entity that is declared elsewhere takes as much memory
ENTITY_CHARACTERS = MIB  # characters that all entities of a record expand to; most entities expand to one
TAR_HEADER_BYTES = MIB  # headers before a member; a path has at most 4,096 bytes
METADATA_BYTES = MIB  # metadata of an article in PMC's bucket; some two kilobytes
MD5_BYTES = 64 << 10  # NLM's .md5 files have 60 bytes; a list of a whole folder has some thousand
# Additional memory while a Parquet file is read. Each page is unpacked whole, and a dictionary page is also copied.
# pyarrow makes a dictionary page of the first 1,024 rows whatever their size: 150 rows of 1.8 MB take 720 MB.
PARQUET_BYTES = 850 * MIB
PARQUET_BATCH_BYTES = 16 * MIB  # rows that are turned into Python objects together

# Unreadable records that `--on-error skip` drops and lists for one batch of files; after that, the rest of a file is
# dropped.
BAD_RECORDS = 20_000

# Servers.
# PubMed's listings have some 300 KB, a page of a dataset's listing 300 KB, the manifest of PMC's inventory 10 KB.
LISTING_BYTES = 32 * MIB
LISTED_FILES = 100_000  # PubMed's two folders hold some 3,000 files
PAGES = 1_000  # pages of a listing; a page has 1,000 files
SMALL_ARTICLE_BYTES = 8 * MIB  # each thread of acquire.py may hold this; larger articles are fetched one at a time
FILE_BYTES = 16 << 30  # a file whose size is not listed; the largest of the Pile have 15 GB, of PubMed 70 MB
LISTED_SHARE = 1.5  # times the listed size, which is rounded to two digits
INVENTORY_ROWS = 100_000_000  # there are some 8 million
# A connection that brings fewer bytes per second than this, for RATE_WINDOW_S, is closed and opened again.
LEAST_BYTES_PER_S = 1_000
RATE_WINDOW_S = 60.0
HEADERS_S = 90.0  # from a request to the end of the response headers
REDIRECTS = 5  # redirects in a row; the Hugging Face hub uses one or two

# Question sets: the largest, MedMCQA's train.json, has 137 MB; MeQSum's workbook has 2 MB unpacked.
TASK_FILE_BYTES = 256 * MIB
WORKBOOK_BYTES = 64 * MIB
WORKBOOK_COLUMNS = 256

# A configuration in YAML: the longest of this repository has 5,000 characters and is 3 levels deep.
YAML_CHARACTERS = 1_000_000
YAML_DEPTH = 32
YAML_VALUES = 100_000


def check_bytes(size_bytes: int, limit: int, where: str, way_out: str) -> None:
    """Refuse an input that is larger than its limit.

    Raises:
        BadInput: `size_bytes` is above `limit`.
    """
    if size_bytes > limit:
        raise BadInput(f"{where} has more than {limit:,} bytes; {way_out}")
