"""Paths and URLs: what they are called, and, apart from that, what a request needs."""

from __future__ import annotations

from collections.abc import Callable

from data_prep.common.redaction import without_credentials


class Location(str):
    """A path or URL as it may be printed and stored: without the credentials that were typed with it.

    As a text it has none, so whatever formats, joins, compares or serialises it has none. Only `typed` has them, and
    only what opens the location reads that: a place that forgets to is refused by the server, and gives nothing away.

    Attributes:
        typed: the path or URL with its credentials.
    """

    typed: str

    def __new__(cls, typed: str) -> Location:
        """A Location stays what it is."""
        made = super().__new__(cls, without_credentials(typed))
        made.typed = typed.typed if isinstance(typed, Location) else typed
        return made

    def __truediv__(self, name: str) -> Location:
        """What lies below it, reached with the same credentials."""
        return self.changed(lambda path: f"{path.rstrip('/')}/{name}")

    def changed(self, change: Callable[[str], str]) -> Location:
        """Another path with the same credentials; a query such as a signature stays behind it."""
        end = len(without_query(self.typed))
        return Location(change(self.typed[:end]) + self.typed[end:])


def without_query(location: str) -> str:
    """A path, or a URL up to its query; a `?` in a path, or in the key of an object store, is a part of it."""
    return location.partition("?")[0] if location.startswith(("http://", "https://")) else location
