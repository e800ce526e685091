"""Searches share their time among the forms of a reader, and a failure can be repeated by its printed name."""

from __future__ import annotations

import re

import pytest
from hypothesis import strategies as st

from hunting import AGAIN, Find, hunt_on
from mutations import Draw


def test_each_form_has_its_turn_and_a_failure_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []

    def of(form: str, fails: bool = False) -> Find:
        def find(draw: Draw) -> list[str]:
            number = draw(st.integers(0, 255))
            seen.append((form, number))
            return [f"{form}: {number}"] if fails and number > 150 else []

        return find

    summary = hunt_on({"a": of("a"), "b": of("b"), "c": of("c")}, seconds=0)
    assert summary.startswith("30 examples (a 10, b 10, c 10) of the seeds 0 to 2, 0 failures")
    with pytest.raises(AssertionError, match=r"HUNT_AGAIN='b, packed=\d+' tries it again") as error:
        hunt_on({"a": of("a"), "b, packed": of("b, packed", fails=True)}, seconds=0.05)
    again, failure = re.findall(r"HUNT_AGAIN='(.*?)' tries it again.*?: (b, packed: \d+)", str(error.value))[0]
    seen.clear()
    monkeypatch.setenv(AGAIN, again)
    with pytest.raises(AssertionError, match=failure):
        hunt_on({"a": of("a"), "b, packed": of("b, packed", fails=True)})
    assert {form for form, _ in seen} == {"b, packed"}
