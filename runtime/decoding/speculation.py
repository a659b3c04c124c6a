"""Several tokens from one call: drafters guess, one loop verifies, and what is drawn stays as is.

A drafted token stands if it is the one drawn from the model's own logits at its place. So greedy
answers stay as they are and samples keep their distribution: it is speculative sampling (arXiv
2211.17192) for a drafter that proposes with certainty. Drafts are as long as measured acceptance
and measured times make worthwhile; often that is none.
"""

import time
from collections import deque
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ..session.protocol import Session
from .sampling import Choice, Chooser

MOST = 15  # drafted tokens in a call
WINDOW = 5  # calls of a size whose times are remembered
FEW = 3  # of them, below which a drafter that costs is given the benefit of the doubt
SLOPE = 0.25  # assumed cost of a further token in a call, in calls of one, until measured
GAIN = 1.08  # by how much drafting must promise to be faster before it is done
MEMORY = 0.9  # weight of the past in a drafter's acceptance within an answer, a call
SLOW = 0.98  # and over answers, a token
PROBE = 64  # calls after which a costly drafter that does not pay is tried again


class Drafter(Protocol):
    """Guesses how an answer goes on."""

    name: str  # drafters of the same name share their acceptance over answers
    cost: float  # of a drafted token, in calls of one, until measured; 0 is not measured, and then
    # a guess is made and scored even if unused
    trust: float  # acceptance to begin with

    def propose(self, answer: Sequence[int], most: int) -> list[int]:
        """At most `most` tokens that may follow `answer`; none if there is no good guess."""
        ...


class PromptLookup:
    """Proposes what followed the last `n` tokens when they last occurred in prompt or answer."""

    cost = 0.0

    def __init__(self, prompt: Sequence[int], n: int, trust: float) -> None:
        self.n, self.name, self.trust = n, f"lookup {n}", trust
        self._ids, self._prompt_length = list(prompt), len(prompt)
        self._after: dict[tuple[int, ...], int] = {}  # n-gram -> where the token after it stands
        self._indexed = n

    def propose(self, answer: Sequence[int], most: int) -> list[int]:
        """Copy on from the last occurrence, over the end of what is known where text repeats."""
        self._ids.extend(answer[len(self._ids) - self._prompt_length :])
        for end in range(self._indexed, len(self._ids)):
            self._after[tuple(self._ids[end - self.n : end])] = end
        self._indexed = max(self._indexed, len(self._ids))
        at = self._after.get(tuple(self._ids[-self.n :]))
        if at is None:
            return []
        known = self._ids[at : at + most]
        return [known[i % len(known)] for i in range(most)]


class DraftModel:
    """Proposes the greedy answer of another, smaller model with the same tokenizer."""

    name, cost, trust = "model", 0.2, 0.6

    def __init__(self, session: Session, prompt: Sequence[int]) -> None:
        self.session, self._prompt = session, list(prompt)
        self._read: list[int] | None = None  # tokens of the answer in the session's cache

    def propose(self, answer: Sequence[int], most: int) -> list[int]:
        """Bring the session up to `answer`, then decode greedily as far as its context goes."""
        most = min(most, self.session.max_context - len(self._prompt) - len(answer))
        if most < 1:
            return []
        logits, proposed = self._catch_up(answer), []
        while True:
            proposed.append(int(logits.argmax()))
            if len(proposed) == most:
                return proposed
            logits = self.session.decode(proposed[-1:])[-1]
            self._read = [*answer, *proposed]

    def _catch_up(self, answer: Sequence[int]) -> np.ndarray:
        """Logits after `answer`, whose last token is always decoded anew."""
        if self._read is None:
            self.session.start(self._prompt)
            self._read = []
        same = 0
        while same < min(len(self._read), len(answer) - 1) and self._read[same] == answer[same]:
            same += 1
        self.session.rewind(len(self._read) - same)
        self._read = list(answer)
        return self.session.decode(answer[same:])[-1]


class CanDraft(Protocol):
    """A session whose model can leave passes out."""

    def draft(self, ids: Sequence[int]) -> np.ndarray:
        """Logits [len(ids), V] after few passes, behind those drafted since the last `decode`."""
        ...


class Shallow:
    """Proposes what the model itself would answer with one L pass in each H cycle.

    It reads the cache of all passes, which verifying then writes anew: nothing of a guess stays.
    """

    name, cost, trust = "shallow", 0.5, 0.95

    def __init__(self, session: CanDraft, ends: Container[int]) -> None:
        self.session, self.ends = session, ends

    def propose(self, answer: Sequence[int], most: int) -> list[int]:
        """One call a token, up to the end of the answer, which needs no verification."""
        proposed = [answer[-1]]
        while len(proposed) <= most:
            token = int(self.session.draft(proposed[-1:])[-1].argmax())
            if token in self.ends:
                break
            proposed.append(token)
        return proposed[1:]


class Experience:
    """What earlier answers of a model taught: seconds a call of each size, drafters' acceptance.

    A call, and a drafted token, is taken to last as long as the best of the last few did.
    """

    def __init__(self) -> None:
        self._seen: dict[int, deque[float]] = {}
        self._drafting: dict[str, deque[float]] = {}
        self._trust: dict[str, float] = {}

    def observe(self, size: int, seconds: float) -> None:
        """Remember a call with `size` tokens."""
        self._seen.setdefault(size, deque(maxlen=WINDOW)).append(seconds)

    def of(self, size: int) -> float:
        """Expected seconds of a call with `size` tokens, in arbitrary units before any was seen."""
        if size in self._seen:
            return min(self._seen[size])
        ones = [min(seen) / _assumed(n) for n, seen in self._seen.items()]
        return min(ones, default=1.0) * _assumed(size)

    def hoped(self, size: int) -> float:
        """`of`, or what is assumed if that is less and few calls of the size were timed yet.

        A call's first time is often its slowest, and would put off a drafter that costs for long.
        """
        assumed = self.of(1) * _assumed(size)
        return min(self.of(size), assumed) if self._few(self._seen.get(size)) else self.of(size)

    @staticmethod
    def _few(times: deque[float] | None) -> bool:
        return len(times or ()) < FEW

    def drafted(self, drafter: Drafter, seconds: float) -> None:
        """Remember what a drafted token took."""
        self._drafting.setdefault(drafter.name, deque(maxlen=WINDOW)).append(seconds)

    def drafting(self, drafter: Drafter) -> float:
        """Expected seconds of a drafted token, as `hoped` of a call."""
        times, assumed = self._drafting.get(drafter.name), drafter.cost * self.of(1)
        measured = min(times or (), default=assumed)
        return min(measured, assumed) if self._few(times) else measured

    def trust(self, drafter: Drafter) -> float:
        """The share of its tokens that proved right of late, or what it begins with."""
        return self._trust.get(drafter.name, drafter.trust)

    def judge(self, drafter: Drafter, right: int, tried: int) -> None:
        """Remember, slowly, how many of a guess's tokens were right."""
        kept = SLOW**tried
        self._trust[drafter.name] = kept * self.trust(drafter) + (1 - kept) * right / tried


def _assumed(size: int) -> float:
    return 1 + SLOPE * (size - 1)


@dataclass(frozen=True)
class Offer:
    """A guess if it is made already, how many tokens are `worth` verifying, tokens a second."""

    guess: list[int]
    worth: int
    rate: float


class Pace:
    """How many tokens of one drafter's guess are worth verifying, from how many proved right."""

    def __init__(self, drafter: Drafter, learned: Experience) -> None:
        self.drafter, self._learned = drafter, learned
        self._right, self._tried = 2 * learned.trust(drafter), 2.0  # as if two had been seen
        self._idle, self._warm = 0, False

    def offer(self, answer: Sequence[int], most: int) -> "Offer":
        """What verifying at most `most` drafted tokens promises; what costs is not guessed yet."""
        if not self.drafter.cost:
            guess = self.drafter.propose(answer, MOST)
            return Offer(guess, *self.promise(min(most, len(guess))))
        worth, rate = self.promise(most)
        self._idle = 0 if worth else self._idle + 1
        if self._idle > PROBE:
            worth, rate = min(1, most), 0.0
        return Offer([], worth, rate)

    def guess(self, answer: Sequence[int], count: int) -> list[int]:
        """At most `count` tokens of a drafter that costs, timed."""
        started, self._idle = time.perf_counter(), 0
        guess = self.drafter.propose(answer, count)
        if guess and self._warm:  # its first guess reads the prompt
            made = min(len(guess) + 1, count)  # it ends where it finds the answer's end
            self._learned.drafted(self.drafter, (time.perf_counter() - started) / made)
        self._warm = True
        return guess

    def length(self, limit: int = MOST) -> int:
        """The number of drafted tokens, at most `limit`, that promises the most tokens a second."""
        return self.promise(limit)[0]

    def promise(self, limit: int) -> tuple[int, float]:
        """(that number, the tokens a second it promises); 0 where drafting does not pay."""
        right, own = self._right / self._tried, self._learned.drafting(self.drafter)
        seconds = self._learned.hoped if self.drafter.cost else self._learned.of
        best, most = 0, GAIN / self._learned.of(1)
        expected = chance = 1.0
        for k in range(1, min(MOST, limit) + 1):
            chance *= right  # that the first k tokens are right
            expected += chance
            rate = expected / (seconds(k + 1) + k * own)
            if rate > most * (1 + 1e-9):
                best, most = k, rate
        return best, most

    def learn(self, guess: Sequence[int], drawn: Sequence[int]) -> None:
        """Compare a guess with what was drawn in its place."""
        right = 0
        while right < min(len(guess), len(drawn)) and guess[right] == drawn[right]:
            right += 1
        tried = right + (right < min(len(guess), len(drawn)))
        if tried:
            self._right = MEMORY * self._right + right
            self._tried = MEMORY * self._tried + tried
            self._learned.judge(self.drafter, right, tried)


@dataclass
class Tally:
    """Calls of a model in one answer, tokens that were drafted in them, and those that stood."""

    calls: int = 0
    drafted: int = 0
    accepted: int = 0


@dataclass
class Verifier:
    """The one loop for all drafters, and for none: from logits to drawn tokens, call by call."""

    session: Session
    choose: Chooser
    limit: int  # tokens in the answer at most; they must fit into the session's context
    ends: Container[int]  # tokens that end an answer
    paces: Sequence[Pace] = ()
    learned: Experience = field(default_factory=Experience)
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        self._answer: list[int] = []
        self._draft: list[int] = []  # that the call under way verifies
        self._guesses: list[list[int]] = []  # of every drafter
        self._called: float | None = None  # when, if it is a call to learn from

    def run(self, logits: np.ndarray) -> Iterator[Choice]:
        """Draw from the prefix's logits [V], and on until an end token or the limit.

        After each call the session holds the prefix and all of the answer but its last token.
        """
        rows = logits[None]
        while True:
            yield from self.take(rows)
            if len(self._answer) >= self.limit or self._answer[-1] in self.ends:
                return
            rows = self.session.decode(self.ask())

    def ask(self, drafts: bool = True) -> list[int]:
        """The ids to append at the next call: the last token, and `drafts` as far as they pay."""
        self._guesses, self._draft = self._drafted() if drafts else ([], [])
        self.tally.calls += 1
        self._called = time.perf_counter() if drafts else None
        return [self._answer[-1], *self._draft]

    def take(self, rows: np.ndarray) -> list[Choice]:
        """The tokens that are drawn from what the call gave, logits [ids asked for, V]."""
        if self._called is not None:
            self.learned.observe(len(rows), time.perf_counter() - self._called)
        drawn = self._draw(rows)
        self._settle(self._answer[-len(drawn) :])
        return drawn

    def _draw(self, rows: np.ndarray) -> list[Choice]:
        """Append tokens to the answer, one for each row while the draft before it was right."""
        drawn: list[Choice] = []
        for row, drafted in zip(rows, [*self._draft, None], strict=True):
            drawn.append(self.choose(self._answer, row))
            self._answer.append(drawn[-1].token)
            if self._answer[-1] != drafted or self._answer[-1] in self.ends:
                break
        return drawn

    def _settle(self, drawn: list[int]) -> None:
        """Forget drafts that were wrong, and let every drafter learn."""
        stood = len(drawn) - 1
        self.session.rewind(len(self._draft) - stood)
        self.tally.drafted += len(self._draft)
        self.tally.accepted += stood
        for pace, guess in zip(self.paces, self._guesses, strict=False):
            pace.learn(guess, drawn)

    def _drafted(self) -> tuple[list[list[int]], list[int]]:
        """(every drafter's guess, what to verify: that of the one which promises most)."""
        most = self.limit - len(self._answer) - 1
        offers = [pace.offer(self._answer, most) for pace in self.paces]
        guesses = [offer.guess for offer in offers]
        worthy = [i for i, offer in enumerate(offers) if offer.worth]
        if not worthy:
            return guesses, []
        best = max(worthy, key=lambda i: offers[i].rate)
        if self.paces[best].drafter.cost:
            guesses[best] = self.paces[best].guess(self._answer, offers[best].worth)
        return guesses, guesses[best][: offers[best].worth]


def lookups(prompt: Sequence[int], learned: Experience) -> list[Pace]:
    """Prompt lookup after long matches, which are mostly right, and after short ones."""
    return [
        Pace(PromptLookup(prompt, n, trust), learned) for n, trust in ((5, 0.8), (3, 0.5), (2, 0.3))
    ]
