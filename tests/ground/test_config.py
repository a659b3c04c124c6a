"""Both spellings of config.json, and errors that name key, value and expectation."""

import re
from typing import Any

import pytest

from hrm_edge.config import HRMTextConfig
from hrm_edge.errors import HRMEdgeError

HUB: dict[str, Any] = {
    "model_type": "hrm_text",
    "vocab_size": 65536,
    "hidden_size": 1536,
    "intermediate_size": 4096,
    "num_hidden_layers": 16,
    "num_attention_heads": 12,
    "head_dim": 128,
    "H_cycles": 2,
    "L_cycles": 3,
    "L_bp_cycles": [0, 3],
    "max_position_embeddings": 4096,
    "rope_theta": 10000,
    "initializer_range": 0.0255155,
    "embedding_scale": 39.1918,
    "tie_word_embeddings": False,
    "prefix_lm": True,
    "pad_token_id": 5,
    "bos_token_id": 6,
    "eos_token_id": 11,
}


def test_the_published_model_has_its_published_size() -> None:
    config = HRMTextConfig.from_dict(HUB)
    assert sum(config.parameters.values()) + config.hidden_size == 1_182_795_264
    assert config.weights_per_token == pytest.approx(4.03e9, rel=0.01)
    assert config.cache_slots == 128
    assert config.passes == tuple("LLLHLLLH")


def test_both_spellings_give_the_same_config() -> None:
    theirs = HUB | {
        "num_hidden_layers": 128,
        "num_layers_per_stack": 16,
        "eos_token_id": [11],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    del theirs["rope_theta"]
    assert HRMTextConfig.from_dict(theirs) == HRMTextConfig.from_dict(HUB)


def test_a_config_survives_writing() -> None:
    config = HRMTextConfig.from_dict(HUB)
    assert HRMTextConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model_type", "llama", "model_type is 'llama', expected 'hrm_text'"),
        ("hidden_size", -1, "hidden_size is -1, expected a whole number from 1 to"),
        ("hidden_size", "1536", "hidden_size is '1536', expected a whole number from 1 to"),
        ("H_cycles", None, "H_cycles is None, expected a whole number from 1 to"),
        ("L_cycles", True, "L_cycles is True, expected a whole number from 1 to"),
        ("num_attention_heads", 7, "num_attention_heads is 7, expected a divisor of hidden_size"),
        ("num_key_value_heads", 4, "num_key_value_heads is 4, expected 12"),
        ("head_dim", 63, "head_dim is 63, expected an even number"),
        ("hidden_act", "gelu", "hidden_act is 'gelu', expected 'silu'"),
        ("rms_norm_eps", 0, "rms_norm_eps is 0, expected a positive number"),
        ("num_layers_per_stack", 5, "num_hidden_layers is 16, expected 5 or 40"),
        ("rope_scaling", {"type": "yarn"}, "rope_type is 'yarn', expected 'default'"),
        ("rope_theta", "big", "rope_theta is 'big', expected a positive number"),
        ("eos_token_id", 65536, "eos_token_id is 65536, expected token ids below vocab_size"),
        ("prefix_lm", "yes", "prefix_lm is 'yes', expected true or false"),
    ],
)
def test_errors_name_key_value_and_expectation(key: str, value: object, message: str) -> None:
    with pytest.raises(HRMEdgeError, match=re.escape(message)):
        HRMTextConfig.from_dict(HUB | {key: value})


def test_a_missing_key_is_called_missing() -> None:
    raw = {k: v for k, v in HUB.items() if k != "vocab_size"}
    with pytest.raises(HRMEdgeError, match="vocab_size is 'missing'"):
        HRMTextConfig.from_dict(raw)
