"""Stop strings, however the text is cut into pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from residency.server.stops import StopStrings

TEXTS = st.text("ab", max_size=12)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3)


def shown(stops: list[str], pieces: list[str]) -> str:
    scanner = StopStrings(stops)
    text = "".join(scanner.feed(piece) for piece in pieces)
    return text if scanner.has_stopped else text + scanner.flush()


@given(pieces=st.lists(TEXTS, max_size=6), stops=STOPS)
def test_text_is_shown_up_to_the_first_stop_string(pieces: list[str], stops: list[str]) -> None:
    text = shown(stops, pieces)
    assert "".join(pieces).startswith(text) and not any(stop in text for stop in stops)


@given(pieces=st.lists(TEXTS, max_size=6), stops=STOPS)
def test_text_without_a_stop_string_is_shown_whole(pieces: list[str], stops: list[str]) -> None:
    whole = "".join(pieces)
    assert shown(stops, pieces) == whole or any(stop in whole for stop in stops)


def test_what_may_become_a_stop_string_is_held_back() -> None:
    assert StopStrings(["END"]).feed("the E") == "the "


def test_what_did_not_become_a_stop_string_is_shown() -> None:
    scanner = StopStrings(["END"])
    assert scanner.feed("the E") + scanner.feed("lk") == "the Elk"


@pytest.mark.parametrize("stops", [[], [""]])
def test_without_stop_strings_everything_is_shown_at_once(stops: list[str]) -> None:
    assert StopStrings(stops).feed("text") == "text"
