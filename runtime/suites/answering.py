"""Who answers: a loaded model in its rows, or a server at an address."""

from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Protocol

from hrm_edge.chat_template import Message
from hrm_edge.errors import HRMEdgeError

from ..chat import format_chat
from ..decoding.answer import Answer, Completion
from ..decoding.rows import together
from ..engine import Model
from ..settings import Settings
from .tasks import LONGEST, Question

SECONDS = 600.0  # for one answer of a server
SOON = 20.0  # for what it says of itself


@dataclass(frozen=True)
class Told:
    """An answer: its text, its tokens, and how it ended; "length" with none: it did not fit."""

    text: str
    tokens: int
    finish_reason: str


UNFIT = Told("", 0, "length")


class Answerer(Protocol):
    """Answers greedily, in any order."""

    def answers(self, questions: Iterable[tuple[Question, int]]) -> Iterator[tuple[Question, Told]]:
        """Each question, of at most so many tokens of answer. Raises HRMEdgeError."""
        ...


class Here:
    """A model of this process, as many questions at once as it has rows."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def answers(self, questions: Iterable[tuple[Question, int]]) -> Iterator[tuple[Question, Told]]:
        """As Answerer says."""
        unfit: list[Question] = []

        def asked() -> Iterator[tuple[Question, Answer]]:
            for question, most in questions:
                answer = self._asked(question, most)
                if answer is None:
                    unfit.append(question)
                else:
                    yield question, answer

        for question, done in together(self._model.rows, asked()):
            while unfit:
                yield unfit.pop(), UNFIT
            if not isinstance(done, Completion):
                raise done
            yield question, Told(done.text, done.stats.completion_tokens, done.finish_reason)
        while unfit:
            yield unfit.pop(), UNFIT

    def _asked(self, question: Question, most: int) -> Answer | None:
        """None for a prompt that leaves no room for an answer."""
        model, asked = self._model, question.prompt.strip()
        messages: list[Message] = [{"role": "user", "content": asked}]
        text = format_chat(messages, question.condition, model.chat_template)
        ids = model.tokenizer.encode(text)
        room = min(LONGEST, model.session.max_context) - len(ids)
        if room < 1:
            return None
        return model.answer(ids, Settings(condition=question.condition, max_tokens=min(most, room)))


class There:
    """`hrm-edge serve` at an address, `parallel` requests at a time."""

    def __init__(self, url: str, key: str | None, parallel: int) -> None:
        """Raises HRMEdgeError if no such server is there."""
        import httpx

        self._url, self._parallel = url.rstrip("/"), parallel
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(headers=headers)
        card = self._sent("GET", "/v1/models")["data"][0]
        if card.get("owned_by") != "hrm-edge":
            raise HRMEdgeError(
                f"{url}: no server of hrm-edge; another one does not put prompts as the model "
                "reads them"
            )
        self.name, self._context = f"{card['id']} at {url}", int(card["max_context"])

    def answers(self, questions: Iterable[tuple[Question, int]]) -> Iterator[tuple[Question, Told]]:
        """As Answerer says."""
        source, waiting = iter(questions), dict[Future[Told], Question]()
        with ThreadPoolExecutor(self._parallel) as pool:
            try:
                while True:
                    for question, most in source:
                        waiting[pool.submit(self._told, question, most)] = question
                        if len(waiting) == self._parallel:
                            break
                    if not waiting:
                        return
                    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                        yield waiting.pop(future), future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _told(self, question: Question, most: int) -> Told:
        body: dict[str, Any] = {"prompt": question.prompt.strip(), "temperature": 0}
        body |= {"condition": question.condition, "max_tokens": most}
        found = self._sent("POST", "/v1/completions", body)
        if found is None:
            return UNFIT
        (choice,), ours = (
            found["choices"],
            found["hrm_edge"],
        )  # to OpenAI's fields, a loop is a stop
        return Told(choice["text"], ours["completion_tokens"], ours["finish_reason"])

    def _sent(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """What the server says; None where it has no room for the prompt. Raises HRMEdgeError."""
        import httpx

        url = self._url + path
        try:
            patience = SOON if body is None else SECONDS
            response = self._client.request(method, url, json=body, timeout=patience)
            found = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise HRMEdgeError(f"{url}: no answer ({error or type(error).__name__})") from None
        if response.status_code == 400 and "max_context is" in response.text:
            return None
        if response.status_code != 200:
            said = str(found.get("error", {}).get("message", ""))[:200]
            raise HRMEdgeError(f"{url}: answered {response.status_code} ({said})")
        return found
