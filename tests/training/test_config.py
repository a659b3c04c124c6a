"""Configs: presets, YAML on top of them, and one clear line for each mistake."""

from pathlib import Path

import pytest

from hrm_edge.errors import HRMEdgeError
from hrm_edge.prompt import SPECIAL_TOKENS
from hrm_edge.training.config import PRESETS, load_config


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_xl_is_the_published_model() -> None:
    config = PRESETS["XL"].architecture(65536, SPECIAL_TOKENS)
    assert config.intermediate_size == 4096
    assert sum(config.parameters.values()) == 1_182_793_728  # and 1,536 of z_L_init
    assert config.embedding_scale == pytest.approx(39.1918, abs=1e-4)
    assert config.initializer_range == pytest.approx(0.0255155, abs=1e-7)


@pytest.mark.parametrize(("name", "millions"), [("B", 301), ("L", 695)])
def test_presets_have_the_reference_sizes(name: str, millions: int) -> None:
    config = PRESETS[name].architecture(65536, SPECIAL_TOKENS)
    assert round(sum(config.parameters.values()) / 1e6) == millions


def test_yaml_changes_a_preset(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "preset: XL\noptimizer: {lr: 1e-3}\nrun: {seed: 7}\n"))
    assert (config.optimizer.lr, config.run.seed, config.model.layers) == (1e-3, 7, 16)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {hiden_size: 64}", "unknown key 'model.hiden_size'; did you mean 'hidden_size'?"),
        ("modle: {}", "unknown key 'modle'; did you mean 'model'?"),
        ("optimizer: {lr: fast}", "optimizer.lr is 'fast', expected a number >= 0"),
        ("run: {steps: 1.5}", "run.steps is 1.5, expected an integer >= 0"),
        ("run: {compile: 1}", "run.compile is 1, expected true or false"),
        ("run: {precision: fp8}", "run.precision is 'fp8', expected one of fp32, bf16"),
        (
            "run: {steps: 5000, epochs: 2}",
            "run.steps is 5000, expected one of run.steps and run.epochs",
        ),
        ("run: {batch_tokens: 1000}", "run.batch_tokens is 1000, expected a multiple of"),
        ("model: {heads: 3}", "model.heads is 3, expected to split 256 into even heads"),
        ("optimizer: {bp_min: 1}", "optimizer.bp_min is 1, expected 2 or more"),
        (
            "optimizer: {dropout: 1.0}",
            "optimizer.dropout is 1.0, expected 0 to less than 1",
        ),
        ("optimizer: {passes_warmup: 1}", "passes_warmup is 1.0, expected 0 to less than 1"),
        (
            "optimizer: {passes_warmup: 0.5, shared_slots: 0.1}",
            "passes_warmup is 0.5, expected 0 with optimizer.shared_slots",
        ),
        (
            "model: {H_cycles: 1}\noptimizer: {early_exit: 0.5}",
            "optimizer.early_exit is 0.5, expected 0 with H_cycles 1",
        ),
        ("model: 3", "model is 3, expected a section of keys"),
        ("preset: XXL", "preset is 'XXL', expected one of tiny"),
        ("- 1", "expected keys and values, found list"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(HRMEdgeError) as error:
        load_config(write(tmp_path, text))
    assert message in str(error.value)
    assert "run.yaml" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("given", ["steps: 7", "epochs: 2"])
def test_a_length_takes_the_place_of_the_presets(tmp_path: Path, given: str) -> None:
    path = tmp_path / "mine.yaml"
    for preset in ("tiny", "finetune"):  # one has steps, the other epochs
        path.write_text(f"preset: {preset}\nrun: {{{given}}}\n")
        run = load_config(path).run
        assert (run.steps, run.epochs) == ((7, 0) if "steps" in given else (0, 2))


def test_neither_file_nor_preset() -> None:
    with pytest.raises(HRMEdgeError, match=r"nothing.yaml: no such file, and not a preset \(tiny"):
        load_config("nothing.yaml")
