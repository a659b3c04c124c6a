"""Drafting changes how fast tokens come, never which: greedy, sampled, and over a whole answer."""

from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hrm_edge.errors import HRMEdgeError
from hrm_edge.export import Recipe, export
from hrm_edge.runtime import Model, load
from hrm_edge.runtime.decoding.sampling import candidates, make_chooser, make_sampler
from hrm_edge.runtime.decoding.speculation import Experience, Pace, PromptLookup, Verifier, lookups
from tiny_models import Shape, write_model

pytestmark = pytest.mark.slow

COPY = "def area(width, height): return width * height # repeat: def area(width, height): return"
PROMPTS = ["Hello", "abcabcabcabcabc", COPY, "1 2 3 1 2 3 1 2 3", "zq"]


@pytest.fixture(scope="module")
def model(shared_bundle: Path) -> Model:
    return load(shared_bundle, threads=1)


@pytest.fixture(params=[1, 3, 7])
def always(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts of this length whenever a drafter has a guess, whether they pay or not."""
    monkeypatch.setattr(Pace, "promise", lambda self, limit: (min(request.param, limit), 1.0))


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_answers_are_equal_token_by_token(model: Model, prompt: str) -> None:
    plain = model.generate(prompt, max_tokens=60, speculate=False)
    drafted = model.generate(prompt, max_tokens=60)
    assert drafted.tokens == plain.tokens and drafted.text == plain.text
    assert plain.stats.calls == len(plain.tokens) - 1 and plain.stats.drafted == 0
    stats = drafted.stats
    assert stats.calls + stats.accepted == len(drafted.tokens) - 1


@pytest.fixture(scope="module")
def exact(shared_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """In float32: where weights or cache are rounded, a call of several tokens may round otherwise
    (in the last place of a sum, which now and then is another int8), and so shift a draw."""
    recipe = Recipe(bits=32, head_bits=32, embedding_bits=32, kv_bits=32)
    out = tmp_path_factory.mktemp("exact") / "bundle"
    bundle = export(shared_checkpoint, out, recipe=recipe, gate=None)
    return load(bundle, threads=1, draft="shallow")


@pytest.mark.usefixtures("always")
def test_samples_with_all_options_are_equal_seed_by_seed(exact: Model) -> None:
    model = exact
    options = {"temperature": 0.3, "top_p": 0.9, "frequency_penalty": 0.2, "logprobs": 2}
    accepted = 0
    for seed in range(6):
        plain = model.generate(COPY, max_tokens=30, seed=seed, speculate=False, **options)
        drafted = model.generate(COPY, max_tokens=30, seed=seed, **options)
        assert drafted.tokens == plain.tokens
        assert drafted.logprobs == pytest.approx(plain.logprobs, abs=1e-4)
        accepted += drafted.stats.accepted
    assert accepted > 0


@pytest.mark.usefixtures("always")
def test_drafts_end_with_the_answer_and_with_the_context(shared_bundle: Path) -> None:
    small = load(shared_bundle, threads=1, max_context=40)
    whole = small.generate("ababababab", max_tokens=1000, speculate=False)
    done = small.generate("ababababab", max_tokens=1000)
    assert done.tokens == whole.tokens
    for limit in range(1, 9):
        assert small.generate("ababababab", max_tokens=limit).tokens == whole.tokens[:limit]


def test_repetition_takes_fewer_calls_by_default(model: Model) -> None:
    model.generate("Hello", max_tokens=20)
    looping = model.generate(COPY, max_tokens=100, logit_bias={65: 50.0})  # AAAA...
    assert looping.tokens == [65] * 100
    assert looping.stats.calls < 60 and looping.stats.accepted > 40


# A model small enough to enumerate: three tokens, logits that depend on the last two.
TABLE = np.random.default_rng(5).standard_normal((3, 3, 3)).astype(np.float32)
FIRST = np.random.default_rng(6).standard_normal(3).astype(np.float32)


class Toy:
    """A session over TABLE."""

    max_context, batches, kv_share = 100, True, "none"

    def __init__(self) -> None:
        self.ids, self.length, self.prefix = [0], 1, [0]

    def decode(self, ids: Sequence[int]) -> np.ndarray:
        rows = []
        for token in ids:
            self.ids.append(token)
            rows.append(TABLE[self.ids[-2], self.ids[-1]])
        return np.stack(rows)

    def decode_rows(self, rows: Sequence[Any], tokens: Sequence[int]) -> np.ndarray:
        raise NotImplementedError

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        raise NotImplementedError

    def start(self, ids: Sequence[int], l_cycles: Sequence[int] | None = None) -> np.ndarray:
        raise NotImplementedError

    def plan(self, l_cycles: Sequence[int] | None) -> tuple[bool, ...]:
        raise NotImplementedError

    def prefix_state(self) -> tuple[np.ndarray, np.ndarray]:
        raise NotImplementedError

    def set_prefix_state(self, prefix: list[int], logits: np.ndarray, cache: np.ndarray) -> None:
        raise NotImplementedError

    def cancel(self) -> None:
        raise NotImplementedError

    def rewind(self, n: int) -> None:
        assert n < len(self.ids)
        del self.ids[len(self.ids) - n :]


class Guesser:
    """Proposes 1, 2, 1, 2, ... whatever came before."""

    name, cost, trust = "guesser", 0.0, 1.0

    def propose(self, answer: Sequence[int], most: int) -> list[int]:
        return [1 + i % 2 for i in range(most)]


@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_samples_keep_their_distribution(temperature: float, monkeypatch) -> None:
    monkeypatch.setattr(Pace, "promise", lambda self, limit: (min(3, limit), 1.0))
    settings, count, drawn, tally = (temperature, 0, 0.95, 0.0), 5_000, Counter(), None
    sample = make_sampler(*settings, seed=11)
    for _ in range(count):
        times, session = Experience(), Toy()
        verifier = Verifier(session, make_chooser(sample, []), 4, (), [Pace(Guesser(), times)])
        answer = tuple(choice.token for choice in verifier.run(FIRST))
        assert session.ids == [0, *answer[:-1]]
        drawn[answer], tally = drawn[answer] + 1, verifier.tally
    assert tally is not None and tally.drafted > 0
    for answer in product(range(3), repeat=4):
        expected = chance(answer, settings)
        spread = max(np.sqrt(expected * (1 - expected) / count), 1e-9)
        assert abs(drawn[answer] / count - expected) < 5 * spread, answer


def chance(answer: tuple[int, ...], settings: tuple) -> float:
    """The probability of `answer` when every token is sampled by itself."""
    total, ids = 1.0, [0]
    for token in answer:
        logits = FIRST if len(ids) == 1 else TABLE[ids[-2], ids[-1]]
        kept, probabilities = candidates(logits, *settings)
        total *= dict(zip(kept.tolist(), probabilities, strict=True)).get(token, 0.0)
        ids.append(token)
    return float(total)


def test_lookup_copies_what_followed_and_goes_on_over_the_end() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 5, 1, 2], 2, 0.5)
    assert lookup.propose([], 3) == [3, 4, 5]
    assert lookup.propose([9], 3) == []
    assert lookup.propose([9, 1, 2], 9) == [9, 1, 2] * 3
    assert PromptLookup([1], 2, 0.5).propose([1], 4) == []
    assert PromptLookup([1], 1, 0.5).propose([1], 4) == [1, 1, 1, 1]


def timed(seconds: dict[int, float]) -> Experience:
    times = Experience()
    for size, taken in seconds.items():
        times.observe(size, taken)
    return times


def test_a_drafter_that_is_wrong_is_soon_left_out_and_comes_back_when_right() -> None:
    pace = Pace(Guesser(), timed({1: 0.1, 2: 0.12, 3: 0.13, 4: 0.14}))
    assert pace.length() >= 3
    wrong = 0
    while pace.length():
        pace.learn([1, 2, 1], [0])
        wrong += 1
    assert wrong <= 20
    assert pace.offer([], 10).worth == 0
    for _ in range(20):  # guesses are scored though they are not used
        pace.learn([1, 2, 1], [1])
    assert pace.length() > 0


def test_the_length_follows_the_measured_times() -> None:
    cheap = timed({size: 0.1 for size in range(1, 17)})
    steep = timed({size: 0.1 * size for size in range(1, 17)})
    assert Pace(Guesser(), cheap).length() == 15
    assert Pace(Guesser(), steep).length() == 0
    step = timed({size: 0.1 if size <= 4 else 0.3 for size in range(1, 17)})
    pace = Pace(Guesser(), step)
    pace.learn([1, 2], [1, 0])
    assert pace.length() == 3


class Costly(Guesser):
    """As right as the guesser, at half a call a token."""

    name, cost, trust = "costly", 0.5, 0.98


def test_the_drafter_that_promises_most_drafts() -> None:
    learned = timed({1: 0.1, 2: 0.11, 3: 0.12, 4: 0.13})
    sure, doubtful = Pace(Costly(), learned), Pace(Guesser(), learned)
    toy = Verifier(Toy(), make_chooser(make_sampler(0, 0, 1, 0, None), []), 9, (), [doubtful, sure])
    assert doubtful.offer([0], 8).rate > sure.offer([0], 8).rate > 0
    toy._answer = [0]
    assert toy._drafted()[0][1] == []  # what costs is not asked for a guess that is not used
    for _ in range(8):
        doubtful.learn([1, 2], [0])
    assert doubtful.offer([0], 8).rate < sure.offer([0], 8).rate
    guesses, draft = toy._drafted()
    assert draft == guesses[1] == [1, 2, 1, 2, 1, 2, 1, 2][: sure.offer([0], 8).worth]
    for _ in range(2):
        learned.drafted(Costly(), 1.0)  # ten calls a token
        assert sure.offer([0], 8).worth > 0  # one slow call, or two, may be no more than a start
    learned.drafted(Costly(), 1.0)
    assert sure.offer([0], 8).worth == 0


def test_calls_are_timed_by_the_best_of_the_last_few() -> None:
    times = timed({1: 0.1})
    assert times.of(5) == pytest.approx(0.2)
    for taken in (9.0, 0.3, 0.4, 0.5, 0.6, 0.7):
        times.observe(5, taken)
    assert times.of(5) == 0.3
    times.observe(5, 0.8)
    assert times.of(5) == 0.4


def test_acceptance_is_remembered_over_answers_but_slowly() -> None:
    learned = timed({1: 0.1, 2: 0.12, 3: 0.13, 4: 0.14})
    first = Pace(Guesser(), learned)
    for _ in range(5):
        first.learn([1, 2], [0])
    assert Pace(Guesser(), learned).length() > first.length()
    for _ in range(200):
        first.learn([1, 2], [0])
    assert Pace(Guesser(), learned).length() == 0
    for _ in range(40):
        first.learn([1, 2], [1])
    assert Pace(Guesser(), learned).length() > 0


def test_long_matches_go_first() -> None:
    drafters = [pace.drafter for pace in lookups([1, 2], Experience())]
    assert [d.n for d in drafters if isinstance(d, PromptLookup)] == [5, 3, 2]


def test_a_model_drafts_for_another_with_the_same_tokenizer(
    shared_checkpoint: Path, tmp_path: Path, monkeypatch
) -> None:
    """In float32: several tokens a call round to int8 otherwise than one, and near ties fall."""
    exact = Recipe(bits=32, head_bits=32, embedding_bits=32, kv_bits=32)
    shared_bundle = export(shared_checkpoint, tmp_path / "exact", recipe=exact, gate=None).path
    alone = load(shared_bundle, threads=1, max_context=128)
    expected = {p: alone.generate(p, max_tokens=40, speculate=False).tokens for p in PROMPTS}
    monkeypatch.setattr(Pace, "promise", lambda self, limit: (min(3, limit), 1.0))
    monkeypatch.setattr("hrm_edge.runtime.engine.lookups", lambda ids, learned: [])
    twin = load(shared_bundle, threads=1, max_context=128, draft=shared_bundle)
    right = drafted = 0
    for prompt, tokens in expected.items():
        done = twin.generate(prompt, max_tokens=40)
        assert done.tokens == tokens
        right, drafted = right + done.stats.accepted, drafted + done.stats.drafted
    assert right >= 0.8 * drafted > 0  # the rest would have come behind an answer's end
    other = export(write_model(tmp_path / "c", Shape(seed=9)), tmp_path / "b").path
    stranger = load(shared_bundle, threads=1, max_context=128, draft=other)
    for prompt, tokens in expected.items():
        assert stranger.generate(prompt, max_tokens=40).tokens == tokens


def test_a_draft_with_another_tokenizer_is_refused(shared_bundle: Path, tmp_path: Path) -> None:
    checkpoint = write_model(tmp_path / "c", Shape())
    tokenizer = checkpoint / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"<|special_1|>"', '"<|odd|>"'))
    other = export(checkpoint, tmp_path / "b").path
    with pytest.raises(HRMEdgeError, match=r"its tokenizer is not .*, so it cannot draft for it"):
        load(shared_bundle, threads=1, draft=other)
