"""Prompts become text: `generate` gathers what `stream` yields over a session's logits.

Knows nothing of how a session computes them.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack, cast

from hrm_edge import memory
from hrm_edge.bundle import Bundle, Manifest
from hrm_edge.chat_template import ChatTemplate, Message, read_chat_template
from hrm_edge.errors import HRMEdgeError
from hrm_edge.fit import shortage
from hrm_edge.names import TOKENIZER
from hrm_edge.prompt import Tokenizer

from .chat import format_chat
from .guided import Constraint, Guide
from .processors import make_processors
from .sampling import Choice, make_chooser, make_sampler
from .session import prompt_cache
from .session.loading import CPU, Loading
from .session.opening import as_loaded, open_session, settled
from .session.protocol import Cancelled, Session
from .session.weight_cache import drop_damaged
from .settings import Options, Settings, in_range
from .speculation import (
    CanDraft,
    DraftModel,
    Experience,
    Pace,
    Shallow,
    Tally,
    Verifier,
    lookups,
)
from .stopping import Ending

__all__ = [
    "Cancelled",
    "Completion",
    "Message",
    "Model",
    "Options",
    "Piece",
    "Settings",
    "Stats",
    "load",
]

SHALLOW = "shallow"  # in place of a bundle that drafts


@dataclass(frozen=True)
class Stats:
    """Times of one answer in seconds and tokens per second; memory in bytes, if it can be had.

    cached_tokens of the prompt were held already and not computed; prefill_tps is then 0. Each of
    `calls` after the prefix decoded one token and some drafted ones, of which `accepted` stood.
    """

    prompt_tokens: int
    completion_tokens: int
    ttft: float
    prefill_tps: float
    decode_tps: float
    peak_memory: int | None
    anonymous_memory: int | None
    cached_tokens: int = 0
    calls: int = 0
    drafted: int = 0
    accepted: int = 0


@dataclass(frozen=True)
class Piece:
    """One token of an answer and the text it completes.

    The text is "" inside a character and while it may become a stop string. `logprob` and
    `top_logprobs` ((token, logprob), likeliest first) are there if asked for. The last piece alone
    has a finish_reason, "stop", "length" or "repetition" (see stopping.py), and stats.
    """

    text: str
    token: int
    finish_reason: str | None = None
    stats: Stats | None = None
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Completion:
    """A whole answer; `tokens` ends with the end-of-answer token, or those of a stop string.

    `logprobs` holds each token's, where they were asked for.
    """

    text: str
    tokens: list[int]
    finish_reason: str
    stats: Stats
    logprobs: tuple[float, ...] = ()

    @classmethod
    def of(cls, pieces: Sequence[Piece]) -> "Completion":
        """The answer whose pieces these are, all of them."""
        last = pieces[-1]
        assert last.finish_reason is not None and last.stats is not None
        text = "".join(piece.text for piece in pieces)
        logprobs = tuple(p.logprob for p in pieces if p.logprob is not None)
        tokens = [piece.token for piece in pieces]
        return cls(text, tokens, last.finish_reason, last.stats, logprobs)


class Model:
    """A loaded bundle that answers prompts, one at a time."""

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer,
        manifest: Manifest,
        chat_template: ChatTemplate | None = None,
        draft: "Model | CanDraft | None" = None,
        guide: Guide | None = None,
    ) -> None:
        self.session, self.tokenizer, self.manifest = session, tokenizer, manifest
        self.chat_template, self.draft, self.guide = chat_template, draft, guide
        self._learned = Experience()
        self._answer = 0  # counts answers, so that an abandoned one cannot go on

    def generate(self, prompt: str, **options: Unpack[Options]) -> Completion:
        """Answer `prompt`. Raises HRMEdgeError for bad options or a prompt that does not fit."""
        return Completion.of(list(self.stream(prompt, **options)))

    def samples(self, prompt: str, n: int, **options: Unpack[Options]) -> list[Completion]:
        """`n` answers with their logprobs; the prompt is read once. A seed counts up from itself.

        The best of them is `max(samples, key=likelihood)`. Raises as `generate`.
        """
        in_range("n", n, 1 <= n <= 1024, "1 to 1024")
        settings = Settings.of({"logprobs": 0} | options)
        ids = self.encode(prompt, settings.condition)
        seeds = [None if settings.seed is None else settings.seed + i for i in range(n)]
        each = [self.stream_ids(ids, replace(settings, seed=seed)) for seed in seeds]
        return [Completion.of(list(pieces)) for pieces in each]

    def stream(self, prompt: str, **options: Unpack[Options]) -> Iterator[Piece]:
        """Yield the answer token by token. Raises as `generate`, before anything is computed.

        Closing the iterator ends the answer; another answer may then begin.
        """
        settings = Settings.of(options)
        return self.stream_ids(self.encode(prompt, settings.condition), settings)

    def stream_chat(
        self, messages: Sequence[Message], **options: Unpack[Options]
    ) -> Iterator[Piece]:
        """`stream` for a conversation that ends with the user's message."""
        settings = Settings.of(options)
        return self.stream_ids(self.encode_chat(messages, settings.condition), settings)

    def stream_ids(self, ids: Sequence[int], settings: Settings) -> Iterator[Piece]:
        """`stream` for a prefix in tokens. If the session holds just this prefix, it is reused."""
        vocabulary = self.manifest.model.vocab_size
        self._check_length(ids)
        if not all(0 <= token < vocabulary for token in ids):
            raise HRMEdgeError(f"the prompt has a token that is not of 0 to {vocabulary - 1}")
        processors = make_processors(settings, ids, vocabulary)
        constraint = self._constraint(settings)
        if constraint is not None:
            processors.append(constraint.process)
        s = settings
        sample = make_sampler(s.temperature, s.top_k, s.top_p, s.min_p, s.seed)
        limit = min(s.max_tokens, self.session.max_context - len(ids))
        verifier = Verifier(
            session=self.session,
            choose=make_chooser(sample, processors, s.logprobs),
            limit=limit,
            ends=self.manifest.eos_token_ids,
            paces=self._paces(ids, constraint) if s.speculate and self.session.batches else (),
            learned=self._learned,
            tally=Tally(),
        )
        self.session.plan(s.l_cycles)  # refuses what it cannot run
        ending = Ending(self.manifest.eos_token_ids, s.stops, limit, s.loop_limit)
        return self._pieces(list(ids), verifier, ending, s.l_cycles)

    def encode(self, prompt: str, condition: str) -> list[int]:
        """The prefix of `prompt` in tokens. Raises HRMEdgeError if no token of an answer fits."""
        return self.encode_chat([{"role": "user", "content": prompt}], condition)

    def encode_chat(self, messages: Sequence[Message], condition: str = "direct") -> list[int]:
        """The prefix of a conversation; see chat.py. Raises HRMEdgeError as `encode`."""
        return self._encode(format_chat(messages, condition, self.chat_template))

    def save_prefix(self, path: str | Path) -> None:
        """Write the last prompt's cache to `path`. Raises HRMEdgeError."""
        prompt_cache.save(Path(path), self.session, self.manifest)

    def restore_prefix(self, path: str | Path) -> None:
        """Read what `save_prefix` wrote: that prompt then needs no prefill. Raises HRMEdgeError."""
        prompt_cache.restore(Path(path), self.session, self.manifest)

    def cancel(self) -> None:
        """From another thread: end the call under way; the answer's iterator raises Cancelled."""
        self.session.cancel()
        if isinstance(self.draft, Model):
            self.draft.cancel()

    def _encode(self, text: str) -> list[int]:
        ids = self.tokenizer.encode(text)
        self._check_length(ids)
        return ids

    def _check_length(self, ids: Sequence[int]) -> None:
        if not ids:
            raise HRMEdgeError("the prompt has no tokens; give at least one")
        if len(ids) >= self.session.max_context:
            memory.trim()  # a megabyte of text leaves 150 MB of tokens to the allocator
            held, most = self.session.max_context, self.manifest.max_seq_len
            then = "; shorten it or load with a larger max_context"
            if held == most:
                then = ", the model's own limit; shorten it"
            raise HRMEdgeError(f"the prompt is {len(ids)} tokens long, max_context is {held}{then}")

    def _constraint(self, settings: Settings) -> Constraint | None:
        if self.guide is not None:
            return self.guide.constraint(settings)
        if settings.json_schema is settings.regex is settings.grammar is None:
            return None
        raise HRMEdgeError("this model was not made by load, so it takes no constraints")

    def _paces(self, ids: Sequence[int], constraint: Constraint | None) -> list[Pace]:
        found = lookups(ids, self._learned)
        if constraint is not None:
            found.insert(0, Pace(constraint, self._learned))
        if isinstance(self.draft, Model):
            found.append(Pace(DraftModel(self.draft.session, ids), self._learned))
        elif self.draft is not None:
            shallow = Shallow(self.draft, self.manifest.eos_token_ids)
            found.append(Pace(shallow, self._learned))
        return found

    def _pieces(
        self, ids: list[int], verifier: Verifier, ending: Ending, l_cycles: Sequence[int] | None
    ) -> Iterator[Piece]:
        self._answer += 1
        mine = self._answer
        cached = len(ids) if self.session.prefix == ids else 0
        decoder, clock = self.tokenizer.stream(), _Clock(len(ids), cached)
        logits = self.session.start(ids, l_cycles)
        clock.prefilled()
        for choice in verifier.run(logits):
            clock.sampled()
            text, reason = ending.push(choice.token, decoder.push)
            yield _piece(text, choice, reason, clock.stats(verifier.tally) if reason else None)
            if reason:
                return
            if mine != self._answer:
                raise HRMEdgeError("another answer was begun with this model; this one has ended")


def likelihood(completion: Completion) -> float:
    """The mean log-probability of an answer's tokens, under the model itself."""
    assert completion.logprobs, "an answer without logprobs"
    return sum(completion.logprobs) / len(completion.logprobs)


def _piece(
    text: str, choice: Choice, reason: str | None = None, stats: Stats | None = None
) -> Piece:
    return Piece(text, choice.token, reason, stats, choice.logprob, choice.top_logprobs)


class _Clock:
    """Times one answer. Between tokens, the time a consumer takes counts as decoding."""

    def __init__(self, prompt_tokens: int, cached_tokens: int) -> None:
        self.prompt_tokens, self.cached_tokens, self.tokens = prompt_tokens, cached_tokens, 0
        self.start = self.ready = self.first = self.last = time.perf_counter()

    def prefilled(self) -> None:
        self.ready = time.perf_counter()

    def sampled(self) -> None:
        self.tokens, self.last = self.tokens + 1, time.perf_counter()
        if self.tokens == 1:
            self.first = self.last

    def stats(self, tally: Tally) -> Stats:
        decoded, seconds = self.tokens - 1, self.last - self.first
        computed = self.prompt_tokens - self.cached_tokens
        return Stats(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.tokens,
            ttft=self.first - self.start,
            prefill_tps=computed / (self.ready - self.start),
            decode_tps=decoded / seconds if decoded else 0.0,
            peak_memory=memory.peak(),
            anonymous_memory=memory.anonymous(),
            cached_tokens=self.cached_tokens,
            calls=tally.calls,
            drafted=tally.drafted,
            accepted=tally.accepted,
        )


class LoadOptions(TypedDict, total=False):
    """Keyword arguments of `load`; see session/loading.py for meanings and defaults."""

    threads: int | None
    max_context: int | None
    verify: bool
    strict: bool
    draft: str | Path | None
    h_cycles: int | None
    provider: str
    weight_cache: str | Path | None
    kv_share: str
    l_cycles: Sequence[int] | None
    fast: bool


def load(
    bundle: str | Path | Bundle, loading: Loading | None = None, **options: Unpack[LoadOptions]
) -> Model:
    """Load a bundle, as `loading` says or as `options` do; see Loading.

    Raises HRMEdgeError if the bundle is damaged, cannot be run here, or does not fit.
    """
    how = _loading(options) if loading is None else loading
    if not isinstance(bundle, Bundle):
        bundle = Bundle.open(Path(bundle), how.verify)
    how = settled(bundle, how)
    loaded = as_loaded(bundle, how)
    if how.strict and how.provider == CPU and (short := shortage(loaded, how.max_context)):
        raise HRMEdgeError(short)
    tokenizer, template = _tokenizer(bundle), read_chat_template(bundle.path)
    if how.weight_cache is not None and how.verify:
        drop_damaged(bundle.manifest, how.weight_cache)
    session = open_session(bundle, how)
    drafter = None
    if how.draft in (None, SHALLOW):
        drafter = _shallow(session, bundle.path, how.draft is not None)
    else:
        alone = {"max_context": None, "draft": None, "h_cycles": None, "l_cycles": None}
        drafter = load(how.draft, replace(how, **alone))
        _same_tokenizer(bundle.path, Path(how.draft))
    manifest = loaded.manifest
    vocabulary, ends = manifest.model.vocab_size, manifest.eos_token_ids
    guide = Guide(bundle.path / TOKENIZER, vocabulary, ends)
    return Model(session, tokenizer, manifest, template, drafter, guide)


def _loading(options: LoadOptions) -> Loading:
    known = Loading.__dataclass_fields__
    for name in options:
        if name not in known:
            raise HRMEdgeError(f"unknown option {name!r}; known are {', '.join(known)}", name)
    given: dict[str, Any] = dict(options)
    if given.get("weight_cache") is not None:
        given["weight_cache"] = Path(given["weight_cache"])
    if given.get("l_cycles") is not None:
        given["l_cycles"] = tuple(given["l_cycles"])
    return Loading(**given)


def _tokenizer(bundle: Bundle) -> Tokenizer:
    tokenizer = Tokenizer(bundle.path)
    vocabulary = bundle.manifest.model.vocab_size
    if tokenizer.vocab_size > vocabulary:
        raise HRMEdgeError(
            f"{bundle.path}: its tokenizer has {tokenizer.vocab_size} tokens, the model "
            f"{vocabulary}; they do not belong together"
        )
    return tokenizer


def _shallow(session: Session, path: Path, asked: bool) -> CanDraft | None:
    """The session as its own drafter, where it can be; HRMEdgeError if `asked` and it cannot."""
    if getattr(session, "can_draft", False):
        return cast(CanDraft, session)
    if not asked:
        return None
    raise HRMEdgeError(
        f"{path}: it cannot draft with fewer passes; that takes a graph that can leave passes out "
        "(export the checkpoint again if the bundle is old) and more than one L pass in a cycle"
    )


def _same_tokenizer(path: Path, draft: Path) -> None:
    if (path / TOKENIZER).read_bytes() != (draft / TOKENIZER).read_bytes():
        raise HRMEdgeError(f"{draft}: its tokenizer is not {path}'s, so it cannot draft for it")
