"""Paths and URLs whose text holds no credentials; the credentials are kept apart, for requests only."""

from __future__ import annotations

from collections.abc import Callable

from data_prep.common.redaction import without_credentials


class Location(str):
    """A path or URL that may be printed and stored: its text does not contain the credentials that the user typed.

    Code that formats, joins, compares or serialises a Location sees no credentials. Only `typed` holds them, and only
    code that opens the location reads `typed`. If such code forgets to, the server refuses it and no secret leaks.

    Attributes:
        typed: the path or URL with its credentials.
    """

    typed: str

    def __new__(cls, typed: str) -> Location:
        """Make a Location from a text; a Location keeps its credentials."""
        made = super().__new__(cls, without_credentials(typed))
        made.typed = typed.typed if isinstance(typed, Location) else typed
        return made

    def __truediv__(self, name: str) -> Location:
        """The location of `name` below this one, with the same credentials."""
        return self.changed(lambda path: f"{path.rstrip('/')}/{name}")

    def changed(self, change: Callable[[str], str]) -> Location:
        """The location with its path changed. Credentials and the URL's query, such as a signature, are kept."""
        end = len(without_query(self.typed))
        return Location(change(self.typed[:end]) + self.typed[end:])


def without_query(location: str) -> str:
    """Remove the query from an http(s) URL. In a path or an object-store key, `?` is an ordinary character."""
    return location.partition("?")[0] if location.startswith(("http://", "https://")) else location
