"""The cases of spec/, which the app's and the web page's suites read as well."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hrm_edge.bundle import PROMPT_FORMAT, Manifest
from hrm_edge.config import HRMTextConfig
from hrm_edge.errors import HRMEdgeError
from hrm_edge.fit import largest_context, need
from hrm_edge.prompt import format_prompt, parse_conditions
from hrm_edge.runtime.decoding.sampling import candidates, make_chooser, make_sampler
from hrm_edge.runtime.decoding.speculation import Experience, Pace, PromptLookup, Verifier
from hrm_edge.runtime.decoding.stopping import Ending
from hrm_edge.runtime.session.loading import Loading
from hrm_edge.runtime.settings import Options, Settings

SPEC = Path(__file__).parents[2] / "spec"


def read(name: str) -> dict[str, Any]:
    return json.loads((SPEC / f"{name}.json").read_text(encoding="utf-8"))


def test_options() -> None:
    spec = read("options")
    for options in spec["taken"]:
        settings = Settings.of(options)
        for name, value in (spec["defaults"] | options).items():
            assert getattr(settings, name) == value
    for case in spec["refused"]:
        with pytest.raises(HRMEdgeError, match=case["option"]):
            Settings.of({case["option"]: case["value"]})


def test_the_keywords_are_those_of_the_table() -> None:
    """A TypedDict cannot be made from a dataclass, so this one is written out."""
    from typing import get_type_hints

    assert get_type_hints(Options) == get_type_hints(Settings)


def test_sampling() -> None:
    spec = read("sampling")
    for case in spec["greedy"]:
        sample = make_sampler(0, 0, 1, 0, None)
        assert sample(np.array(case["logits"], np.float32)) == case["token"]
    for case in spec["cases"]:
        options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | case["options"]
        ids, found = candidates(np.array(case["logits"], np.float32), **options)
        expected = dict(zip(case["ids"], case["probabilities"], strict=True))
        assert dict(zip(ids.tolist(), found, strict=True)) == pytest.approx(expected, abs=1e-5)


def test_prompt() -> None:
    spec = read("prompt")
    assert spec["format"] == PROMPT_FORMAT
    for case in spec["cases"]:
        assert format_prompt(case["text"], parse_conditions(case["condition"])) == case["prefix"]
    for case in spec["refused"]:
        with pytest.raises(HRMEdgeError):
            format_prompt(case["text"], parse_conditions(case["condition"]))


class Dictated:
    """A session whose greedy answer is given."""

    length, max_context, batches, prefix = 0, 99, False, list[int]()

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = list(tokens)

    def logits(self) -> np.ndarray:
        row = np.zeros(32, np.float32)
        row[self._tokens.pop(0)] = 1
        return row

    def decode(self, ids: Sequence[int]) -> np.ndarray:
        return np.stack([self.logits() for _ in ids])

    def rewind(self, n: int) -> None:
        assert n == 0


def test_stopping() -> None:
    for case in read("stopping")["cases"]:
        session: Any = Dictated(case["drawn"])
        choose = make_chooser(make_sampler(0, 0, 1, 0, None), (), None)
        verifier = Verifier(session, choose, case["max_tokens"], case["ends"])
        tokens = [choice.token for choice in verifier.run(session.logits())]
        assert tokens == case["tokens"]
        assert (tokens[-1] in case["ends"]) == (case["finish_reason"] == "stop")


def test_repetition() -> None:
    for case in read("stopping")["repetition"]["cases"]:
        drawn = case["before"] + case["block"] * (2000 // len(case["block"]))
        ending = Ending((), (), 10**6, Settings().loop_limit)
        ends = (i + 1 for i, t in enumerate(drawn) if ending.push(t, str)[1] == "repetition")
        assert next(ends, None) == case["tokens"]


def test_fit(tmp_path: Path) -> None:
    for case in read("fit")["cases"]:
        (tmp_path / "manifest.json").write_text(json.dumps(case["manifest"]))
        manifest = Manifest.read(tmp_path)
        for expected in case["needs"]:
            found = need(manifest, expected["context"])
            assert expected == {"context": expected["context"]} | vars(found)
        for room in case["rooms"]:
            assert largest_context(manifest, room["room"]) == room["context"]


def test_plan() -> None:
    def model(case: dict[str, Any]) -> HRMTextConfig:
        rest = dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size"), 16)
        rest |= dict.fromkeys(("num_attention_heads", "max_position_embeddings"), 1)
        raw = {"model_type": "hrm_text", "embedding_scale": 1.0} | rest | case["model"]
        return HRMTextConfig.from_dict(raw)

    spec = read("plan")
    for case in spec["cases"]:
        if "passes" in case:
            assert list(model(case).plan(case["l_cycles"])) == case["passes"]
        else:
            assert list(model(case).shared_slots(case["kv_share"])) == case["slots"]
    for case in spec["refused"]:
        with pytest.raises(HRMEdgeError, match=r"l_cycles is|kv_share is"):
            if "l_cycles" in case:
                model(case).plan(case["l_cycles"])
            Loading(kv_share=case["kv_share"])


def test_pace() -> None:
    for case in read("pace")["cases"]:
        learned = Experience()
        for size, seconds in case["times"]:
            learned.observe(size, seconds)
        pace = Pace(PromptLookup([1, 2, 3], 2, case["trust"]), learned)
        for right, compared in case["learned"]:
            wrong = [2] if compared > right else []
            pace.learn([1] * compared, [1] * right + wrong)
        assert pace.length(case["most"]) == case["worth"], case
