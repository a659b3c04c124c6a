"""The `openai` client, unmodified, against the server; answers are those of the model itself."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from hrm_edge.runtime import Model, load
from serving import Running, serving, slow

pytestmark = pytest.mark.slow

HELLO: Any = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def model(shared_bundle: Path) -> Model:
    return load(shared_bundle, threads=1)


@pytest.fixture(scope="module")
def running(shared_bundle: Path) -> Iterator[Running]:
    with serving(load(shared_bundle, threads=1), keys=["one", "two"]) as server:
        yield server


@pytest.fixture(scope="module")
def client(running: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key="two", max_retries=0)


def test_a_completion_is_the_models(client: openai.OpenAI, model: Model) -> None:
    done = client.completions.create(model="tiny", prompt="Hello", max_tokens=12)
    expected = model.generate("Hello", max_tokens=12)
    assert done.choices[0].text == expected.text
    assert done.choices[0].finish_reason == expected.finish_reason
    assert done.usage is not None
    assert done.usage.prompt_tokens == len(model.encode("Hello", "direct"))
    assert done.usage.completion_tokens == len(expected.tokens)


def test_a_chat_is_the_models_streamed_or_not(client: openai.OpenAI, model: Model) -> None:
    expected = model.generate("Hello", max_tokens=30).text
    whole = client.chat.completions.create(model="tiny", messages=HELLO, max_completion_tokens=30)
    assert whole.choices[0].message.content == expected
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=HELLO,
            max_tokens=30,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    texts = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(texts) == expected and len(texts) > 4
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_streamed_completion_adds_up(client: openai.OpenAI, model: Model) -> None:
    stream = client.completions.create(model="tiny", prompt="Hello", max_tokens=20, stream=True)
    assert "".join(c.choices[0].text for c in stream) == model.generate("Hello", max_tokens=20).text


def test_a_conversation_and_a_condition_change_the_prompt(
    client: openai.OpenAI, model: Model
) -> None:
    talk: Any = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Bye"},
    ]
    done = client.chat.completions.create(
        model="tiny", messages=talk, max_tokens=5, extra_body={"condition": "synth,cot"}
    )
    told: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    ids = model.encode_chat([*told, *talk[2:]], "synth,cot")
    assert done.usage and done.usage.prompt_tokens == len(ids)
    direct = client.completions.create(model="tiny", prompt=ids, max_tokens=5)
    assert direct.choices[0].text == done.choices[0].message.content


def test_seeds_several_answers_and_several_prompts(client: openai.OpenAI, model: Model) -> None:
    done = client.completions.create(
        model="tiny", prompt=["Hello", "Bye"], n=2, temperature=1, seed=5, max_tokens=8
    )
    expected = [
        model.generate(prompt, temperature=1.0, seed=seed, max_tokens=8).text
        for prompt in ("Hello", "Bye")
        for seed in (5, 6)
    ]
    assert [choice.text for choice in done.choices] == expected
    assert [choice.index for choice in done.choices] == [0, 1, 2, 3]


def test_stop_strings_penalties_and_bias_reach_the_model(
    client: openai.OpenAI, model: Model
) -> None:
    options: Any = {"presence_penalty": 1.5, "frequency_penalty": 0.5, "max_tokens": 20}
    expected = model.generate("Hello", logit_bias={60: 3.0}, **options)
    done = client.completions.create(model="tiny", prompt="Hello", logit_bias={"60": 3}, **options)
    assert done.choices[0].text == expected.text
    word = expected.text[4:6]
    stopped = client.completions.create(
        model="tiny", prompt="Hello", logit_bias={"60": 3}, stop=[word], **options
    )
    assert stopped.choices[0].text == expected.text[: expected.text.index(word)]
    assert stopped.choices[0].finish_reason == "stop"


def test_logprobs_of_both_apis_are_the_models(client: openai.OpenAI, model: Model) -> None:
    pieces = list(model.stream("Hello", max_tokens=6, logprobs=3))
    chat = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=6, logprobs=True, top_logprobs=3
    )
    assert chat.choices[0].logprobs is not None
    content = chat.choices[0].logprobs.content or []
    assert [c.logprob for c in content] == pytest.approx([p.logprob for p in pieces])
    tops = [[t.logprob for t in c.top_logprobs] for c in content]
    assert tops == [pytest.approx([lp for _, lp in p.top_logprobs]) for p in pieces]
    done = client.completions.create(model="tiny", prompt="Hello", max_tokens=6, logprobs=3)
    found: Any = done.choices[0].logprobs
    assert found.token_logprobs == [c.logprob for c in content]
    assert found.tokens == [c.token for c in content]
    assert [len(top) for top in found.top_logprobs] == [3] * 6


def test_an_answer_follows_a_json_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {
            "n": {"type": "integer", "minimum": 0, "maximum": 99},
            "b": {"type": "boolean"},
        },
        "required": ["n", "b"],
        "additionalProperties": False,
    }
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    for seed in range(5):
        done = client.chat.completions.create(
            model="tiny", messages=HELLO, response_format=wanted, temperature=1, seed=seed
        )
        value = json.loads(done.choices[0].message.content or "")
        assert set(value) == {"n", "b"} and 0 <= value["n"] <= 99
        assert isinstance(value["b"], bool)
    picked = client.completions.create(
        model="tiny", prompt="Hello", extra_body={"regex": "(yes|no)"}
    )
    assert picked.choices[0].text in ("yes", "no")


def test_echo_scores_an_answer_as_the_session_does(client: openai.OpenAI, model: Model) -> None:
    own = list(model.stream("Hello", max_tokens=5, logprobs=0))
    prefix, answer = model.encode("Hello", "direct"), [p.token for p in own]
    done = client.completions.create(
        model="tiny", prompt=prefix + answer, echo=True, logprobs=1, max_tokens=1
    )
    found: Any = done.choices[0].logprobs
    assert found.token_logprobs[: len(prefix)] == [None] * len(prefix)
    scored = found.token_logprobs[len(prefix) : -1]
    assert scored == pytest.approx([p.logprob for p in own], abs=2e-3)
    assert len(found.tokens) == len(prefix) + len(answer) + 1
    likeliest = [max(top.values()) for top in found.top_logprobs[len(prefix) : -1]]
    assert likeliest == scored, "greedy tokens are the likeliest"


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [card.id for card in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "hrm-edge"


def test_mistakes_become_the_clients_exceptions(client: openai.OpenAI, running: Running) -> None:
    with pytest.raises(openai.NotFoundError, match="'gpt' is not served here"):
        client.completions.create(model="gpt", prompt="Hello")
    with pytest.raises(openai.BadRequestError, match="temperature is 900: expected") as bad:
        client.completions.create(model="tiny", prompt="Hello", temperature=900)
    assert (bad.value.param, bad.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.BadRequestError, match="max_context is 256"):
        client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "x" * 300}], stream=True
        )
    with pytest.raises(openai.BadRequestError, match="json_schema cannot be used") as bad:
        wanted: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 7}}}
        client.chat.completions.create(model="tiny", messages=HELLO, response_format=wanted)
    assert bad.value.param == "response_format"
    stranger = client.with_options(api_key="three")
    with pytest.raises(openai.AuthenticationError, match="a valid API key is needed"):
        stranger.models.list()


@pytest.mark.parametrize("free", [0, 1, 6])
def test_leaving_a_stream_cancels_it(model: Model, free: int) -> None:
    """In the prefill, in the first call after it, and in the middle."""
    with serving(slow(model, 0, free)) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="any", max_retries=0)
        stream = client.chat.completions.create(
            model="tiny", messages=HELLO, max_tokens=240, logit_bias={"11": -100}, stream=True
        )
        next(iter(stream))
        assert running.counts["finished"] == 0
        stream.close()
        counts = running.settle()
        assert (counts["accepted"], counts["cancelled"]) == (1, 1)
