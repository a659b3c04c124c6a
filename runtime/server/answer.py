"""What the model is made to do for a request: the one place where the server drives it."""

from dataclasses import replace

from hrm_edge.errors import HRMEdgeError
from hrm_edge.prompt import PROMPT_END, PROMPT_START
from hrm_edge.tool_format import ToolFormat

from ..decoding.answer import Answer
from ..decoding.guided import NotInstalled
from ..decoding.tools import call_grammar
from ..engine import Model, Settings
from .wire.ask import Ask, Prompt, ToolUse
from .wire.errors import RequestError, invalid
from .wire.logprobs import Scoring


def answers(model: Model, ask: Ask, form: ToolFormat | None = None) -> list[Answer]:
    """All answers of `ask`; nothing is computed yet. `form` is how the model calls tools.

    Raises RequestError for what cannot be answered.
    """
    found: list[Answer] = []
    for number, prompt in enumerate(ask.prompts):
        try:
            if form is not None and not form.results and _tells_results(prompt):
                raise HRMEdgeError("this model cannot be told what a tool gave")
            settings = Settings.of(ask.options)
            if ask.tools is not None and form is not None:
                settings = replace(settings, grammar=_calls(model, ask.tools, form))
            ids = _encode(model, prompt, settings, ask.tools)
            for i in range(ask.n):
                found.append(_answer(model, ids, _numbered(settings, i), ask))
        except HRMEdgeError as error:
            raise _refusal(error, ask, number) from None
    return found


def _refusal(error: HRMEdgeError, ask: Ask, number: int) -> RequestError:
    """What the engine refuses: the option at fault if it names one, else the prompt."""
    where = "messages" if ask.chat else "prompt" if len(ask.prompts) == 1 else f"prompt[{number}]"
    if isinstance(error, NotInstalled):
        return RequestError(501, str(error), "not_supported", "response_format")
    option = "response_format" if error.parameter == "json_schema" else error.parameter
    if option == "grammar" and ask.tools is not None:
        option = "tools"
    return invalid(str(error), option or where)


def _numbered(settings: Settings, i: int) -> Settings:
    return settings if settings.seed is None else replace(settings, seed=settings.seed + i)


def _tells_results(prompt: Prompt) -> bool:
    return any(isinstance(message, dict) and message["role"] == "tool" for message in prompt)


def _calls(model: Model, use: ToolUse, form: ToolFormat) -> str:
    special = model.tokenizer.special
    return call_grammar(form, use.callable, special, use.free, use.several)


def _encode(model: Model, prompt: Prompt, settings: Settings, tools: ToolUse | None) -> list[int]:
    if isinstance(prompt, str):
        if not prompt.strip():
            raise HRMEdgeError("the prompt is empty, expected some text")
        if not prompt.startswith(PROMPT_START):
            return model.encode(prompt, settings.condition)
        return model.tokenizer.encode(prompt)
    if prompt and isinstance(prompt[0], dict):
        shown = None if tools is None else tools.shown
        return model.encode_chat(prompt, settings.condition, shown)  # type: ignore[arg-type]
    return prompt  # type: ignore[return-value]


def _answer(model: Model, ids: list[int], settings: Settings, ask: Ask) -> Answer:
    answer = model.answer(
        ids, settings, special=ask.tools is not None
    )  # which checks the ids, for an echo too
    if not ask.echo:
        return answer
    (end,) = model.tokenizer.encode(PROMPT_END)
    cut = ids.index(end) + 1 if end in ids else len(ids)
    if cut == len(ids):
        raise HRMEdgeError(
            f"there is nothing to score after {PROMPT_END}: a prefix is read in both directions, "
            f"so only the answer behind it has log-probabilities; send prefix{PROMPT_END}answer"
        )
    model.session.plan(settings.l_cycles)  # refuses what it cannot run
    return Scoring(model.tokenizer, ids[:cut], ids[cut:], settings, ask.more)
