"""Stop strings over texts cut anywhere, against str.partition; loops of every period."""

import random
from pathlib import Path

import pytest

from hrm_edge.runtime import load
from hrm_edge.runtime.decoding.stopping import LEAST_REPEATED, LONGEST_PERIOD, Repetition, StopText
from hrm_edge.runtime.settings import LOOP


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


def ended_at(tokens: list[int], repeats: int) -> int | None:
    """The number of tokens with which a loop is found."""
    loop = Repetition(repeats)
    return next((i + 1 for i, token in enumerate(tokens) if loop.push(token)), None)


@pytest.mark.parametrize("period", [1, 2, 3, 7, 16, 17, 40, LONGEST_PERIOD])
@pytest.mark.parametrize("repeats", [2, 3, LOOP, 30])
def test_a_loop_is_found_at_the_token_that_makes_it_whole(period: int, repeats: int) -> None:
    before, block = [1000, 1001, 1002], list(range(period))
    least = max(repeats * period, LEAST_REPEATED)
    assert ended_at([*before, *(block * 200)], repeats) == len(before) + least
    assert ended_at([*before, *(block * 200)[: least - 1], 2000, *block], repeats) is None


def test_what_does_not_repeat_goes_on() -> None:
    draw = random.Random(2)
    assert ended_at([draw.randrange(3) for _ in range(20000)], LOOP) is None
    longer = list(range(LONGEST_PERIOD + 1))
    assert ended_at(longer * 100, LOOP) is None
    rows = [[*range(20), row, *range(20)] for row in range(100, 300)]  # a table that counts
    assert ended_at([token for row in rows for token in row], LOOP) is None


def test_a_table_of_equal_rows_goes_on_below_the_limit() -> None:
    row = list(range(24))
    assert ended_at([*(row * (LOOP - 1)), 99, *(row * (LOOP - 1))], LOOP) is None


def test_greedy_answers_leave_a_loop_and_drawn_ones_where_asked(shared_bundle: Path) -> None:
    model = load(shared_bundle, threads=1)
    bias = {65: 100.0}
    done = model.generate("Hi", logit_bias=bias, max_tokens=200)
    assert (done.finish_reason, len(done.tokens)) == ("repetition", LEAST_REPEATED)
    done = model.generate("Hi", logit_bias=bias, max_tokens=200, max_repeats=0)
    assert (done.finish_reason, len(done.tokens)) == ("length", 200)
    done = model.generate("Hi", logit_bias=bias, max_tokens=200, temperature=0.1)
    assert (done.finish_reason, len(done.tokens)) == ("length", 200)
    done = model.generate("Hi", logit_bias=bias, max_tokens=200, temperature=0.1, max_repeats=150)
    assert (done.finish_reason, len(done.tokens)) == ("repetition", 150)
