"""Cut words that are too long for training, because its time grows with the square of a word's length.

A single word of 200,000 characters, such as a gene sequence, base64 or a line of dashes, takes minutes; one of a
million characters takes hours. The longest word in 33,268 abstracts has 32 characters. Words are cut only for training;
texts are encoded with whole words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from data_prep.common.files import JsonDict

LONGEST_CHARACTERS = 1000
NAMED_DOCUMENTS = 20
# White space of GPT-2's pattern, which is that of Unicode; str.split also splits at four more characters (`NO_SPACE`).
SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
RUN = re.compile(
    rf"(?<![^{SPACE}])[^{SPACE}]{{{LONGEST_CHARACTERS},}}|(?<![{SPACE}])[{SPACE}]{{{LONGEST_CHARACTERS},}}"
)
NO_SPACE = "\x1c\x1d\x1e\x1f"


@dataclass
class LongWords:
    """Cuts words of more than `LONGEST_CHARACTERS` in texts, and counts them.

    Attributes:
        words: number of words that were cut.
        longest: length of the longest word in characters.
        documents: ids of the first documents with such words.
    """

    words: int = 0
    longest: int = 0
    documents: list[str] = field(default_factory=list)

    def cut(self, id: str, text: str) -> Iterator[str]:
        """Cut a text within its long words; a text without long words stays in one part.

        Args:
            id: id of the document.
            text: text of the document.
        """
        start = 0
        for end in self._cuts(id, text) if _may_have_one(text) else ():
            yield text[start:end]
            start = end
        yield text[start:] if start else text

    def facts(self) -> JsonDict:
        """The entry for the manifest; empty if no word was cut."""
        cut = {"words": self.words, "longest_characters": self.longest, "documents": self.documents}
        return {"long_words": {"cut_at_characters": LONGEST_CHARACTERS, **cut}} if self.words else {}

    def __str__(self) -> str:
        return (
            f"{self.words:,} words of more than {LONGEST_CHARACTERS:,} characters, the longest of {self.longest:,}, "
            f"were cut for training, in {', '.join(self.documents)}"
            f"{' and more' if len(self.documents) == NAMED_DOCUMENTS else ''}; they are encoded whole"
        )

    def _cuts(self, id: str, text: str) -> Iterator[int]:
        from tokenizers import pre_tokenizers

        words = pre_tokenizers.ByteLevel(add_prefix_space=False)
        for run in RUN.finditer(text):
            for _, (start, end) in words.pre_tokenize_str(run[0]):
                if end - start > LONGEST_CHARACTERS:
                    self.words += 1
                    self.longest = max(self.longest, end - start)
                    if id not in self.documents[-1:] and len(self.documents) < NAMED_DOCUMENTS:
                        self.documents.append(id)
                    yield from range(run.start() + start + LONGEST_CHARACTERS, run.start() + end, LONGEST_CHARACTERS)


def _may_have_one(text: str) -> bool:
    """Whether a text may hold a long word; this test rules out most texts in a tenth of the pattern's time."""
    if len(text) <= LONGEST_CHARACTERS:
        return False
    sizes = [*map(len, text.split())]
    spaces = len(text) - sum(sizes) - len(sizes)  # white space beyond one character per word
    return (
        max(sizes, default=0) >= LONGEST_CHARACTERS
        or spaces >= LONGEST_CHARACTERS - 2
        or any(sign in text for sign in NO_SPACE)
    )
