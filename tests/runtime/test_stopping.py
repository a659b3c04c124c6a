"""Stop strings over texts cut anywhere, against str.partition."""

import random

from hrm_edge.runtime.stopping import StopText


def shown(text: str, stops: list[str], cuts: random.Random) -> tuple[str, bool]:
    """What appears if `text` comes in pieces of random length."""
    stop, out = StopText(stops), ""
    while text:
        size = cuts.randint(1, 4)
        piece, text = text[:size], text[size:]
        piece, found = stop.push(piece)
        out += piece
        if found:
            return out, True
    return out + stop.flush(), False


def test_a_text_ends_where_partition_cuts_it() -> None:
    cuts = random.Random(0)
    for _ in range(2000):
        text = "".join(cuts.choices("ab\n", k=cuts.randint(0, 12)))
        stop = "".join(cuts.choices("ab\n", k=cuts.randint(1, 4)))
        before, found, _ = text.partition(stop)
        assert shown(text, [stop], cuts) == (before, bool(found)), (text, stop)


def test_of_several_none_is_ever_shown() -> None:
    cuts = random.Random(1)
    for _ in range(2000):
        text = "".join(cuts.choices("abc", k=cuts.randint(0, 12)))
        stops = ["".join(cuts.choices("abc", k=cuts.randint(1, 3))) for _ in range(3)]
        out, found = shown(text, stops, cuts)
        assert text.startswith(out) and not any(stop in out for stop in stops)
        assert found == any(stop in text for stop in stops)
        assert found or out == text


def test_text_is_held_back_no_longer_than_needed() -> None:
    stop = StopText(["END"])
    assert stop.push("abE") == ("ab", False)
    assert stop.push("N") == ("", False)
    assert stop.push("x") == ("ENx", False)
    assert StopText([]).push("abc") == ("abc", False)
