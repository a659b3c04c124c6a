"""Prompts become text: `generate` gathers what `stream` yields over a session's logits.

Knows nothing of how a session computes them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from hrm_edge import memory
from hrm_edge.bundle import Bundle, Manifest
from hrm_edge.chat_template import ChatTemplate, Message, read_chat_template
from hrm_edge.errors import HRMEdgeError
from hrm_edge.fit import shortage
from hrm_edge.names import TOKENIZER
from hrm_edge.prompt import Tokenizer

from .chat import format_chat
from .decoding.answer import Answer, Completion, Generation, Piece, Stats, alone, likelihood
from .decoding.guided import Constraint, Guide
from .decoding.processors import make_processors
from .decoding.rows import Rows
from .decoding.sampling import make_chooser, make_sampler
from .decoding.speculation import (
    DraftModel,
    Experience,
    Pace,
    Shallow,
    Tally,
    Verifier,
    lookups,
)
from .decoding.stopping import Ending
from .session import prompt_cache
from .session.loading import CPU, Loading
from .session.opening import as_loaded, open_rows, settled
from .session.protocol import Cancelled, Session
from .session.weight_cache import drop_damaged
from .settings import Options, Settings, in_range

__all__ = [
    "Cancelled",
    "Completion",
    "Message",
    "Model",
    "Options",
    "Piece",
    "Settings",
    "Stats",
    "likelihood",
    "load",
]

SHALLOW = "shallow"  # in place of a bundle that drafts


class Model:
    """A loaded bundle that answers prompts: one at a time, or as many at once as `rows` has."""

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer,
        manifest: Manifest,
        chat_template: ChatTemplate | None = None,
        draft: "Model | str | None" = None,
        guide: Guide | None = None,
        beside: Sequence[Session] = (),
    ) -> None:
        """`draft` is a model or SHALLOW; `beside` are further sessions over the same weights."""
        self.session, self.tokenizer, self.manifest = session, tokenizer, manifest
        self.rows = Rows([session, *beside])
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
        return self._pieces(self.answer(ids, settings))

    def answer(self, ids: Sequence[int], settings: Settings, special: bool = False) -> Answer:
        """What `rows` can compute beside others. Raises as `generate`; computes nothing yet.

        `special`: the text has the special tokens of the answer too, but for its end.
        """
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
        ends = self.manifest.eos_token_ids
        choose = make_chooser(sample, processors, s.logprobs)

        def verifier(session: Session) -> Verifier:
            drafts = s.speculate and session.batches
            paces = self._paces(ids, constraint, session) if drafts else ()
            return Verifier(session, choose, limit, ends, paces, self._learned, Tally())

        self.session.plan(s.l_cycles)  # refuses what it cannot run
        ending = Ending(ends, s.stops, limit, s.loop_limit)
        decoder = self.tokenizer.stream(special)
        return Generation(list(ids), s.l_cycles, verifier, ending, decoder.push)

    def encode(self, prompt: str, condition: str) -> list[int]:
        """The prefix of `prompt` in tokens. Raises HRMEdgeError if no token of an answer fits."""
        return self.encode_chat([{"role": "user", "content": prompt}], condition)

    def encode_chat(
        self,
        messages: Sequence[Message],
        condition: str = "direct",
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """The prefix of a conversation; see chat.py. Raises HRMEdgeError as `encode`."""
        return self._encode(format_chat(messages, condition, self.chat_template, tools))

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

    def _paces(
        self, ids: Sequence[int], constraint: Constraint | None, session: Session
    ) -> list[Pace]:
        found = lookups(ids, self._learned)
        if constraint is not None:
            found.insert(0, Pace(constraint, self._learned))
        if isinstance(self.draft, Model):
            found.append(Pace(DraftModel(self.draft.session, ids), self._learned))
        elif self.draft is not None:
            shallow = Shallow(session, self.manifest.eos_token_ids)  # type: ignore[arg-type]
            found.append(Pace(shallow, self._learned))
        return found

    def _pieces(self, answer: Answer) -> Iterator[Piece]:
        self._answer += 1
        mine = self._answer
        for piece in alone(answer, self.session):
            yield piece
            if mine != self._answer and piece.finish_reason is None:
                raise HRMEdgeError("another answer was begun with this model; this one has ended")


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
    rows: int | None


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
    if (
        how.strict
        and how.provider == CPU
        and (short := shortage(loaded, how.max_context, how.rows or 1))
    ):
        raise HRMEdgeError(short)
    tokenizer, template = _tokenizer(bundle), read_chat_template(bundle.path)
    if how.weight_cache is not None and how.verify:
        drop_damaged(bundle.manifest, how.weight_cache)
    session, *beside = open_rows(bundle, how)
    drafter = None
    if how.draft in (None, SHALLOW):
        drafter = _shallow(session, bundle.path, how.draft is not None)
    else:
        own: dict[str, Any] = {"max_context": None, "h_cycles": None, "l_cycles": None}
        drafter = load(how.draft, replace(how, draft=None, rows=1, **own))
        _same_tokenizer(bundle.path, Path(how.draft))
    manifest = loaded.manifest
    vocabulary, ends = manifest.model.vocab_size, manifest.eos_token_ids
    guide = Guide(bundle.path / TOKENIZER, vocabulary, ends)
    return Model(session, tokenizer, manifest, template, drafter, guide, beside)


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


def _shallow(session: Session, path: Path, asked: bool) -> str | None:
    """SHALLOW where the session can be its own drafter; HRMEdgeError if `asked` and it cannot."""
    if getattr(session, "can_draft", False):
        return SHALLOW
    if not asked:
        return None
    raise HRMEdgeError(
        f"{path}: it cannot draft with fewer passes; that takes a graph that can leave passes out "
        "(export the checkpoint again if the bundle is old) and more than one L pass in a cycle"
    )


def _same_tokenizer(path: Path, draft: Path) -> None:
    if (path / TOKENIZER).read_bytes() != (draft / TOKENIZER).read_bytes():
        raise HRMEdgeError(f"{draft}: its tokenizer is not {path}'s, so it cannot draft for it")
