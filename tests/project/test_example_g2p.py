"""examples/g2p: its split can be made again; the model that ships is as good as its card says."""

import json
import re
from pathlib import Path

import pytest

from examples.g2p.data import hashes, main, part_of, split, written
from examples.g2p.score import distance, error_rates
from hrm_edge import shipped
from hrm_edge.runtime import load

EXAMPLE = Path(__file__).parents[2] / "examples" / "g2p"
PER, WER = 0.0616, 0.256  # of every 25th test word, without stress, measured


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("g2p")
    main(out)
    return out


def words(path: Path) -> list[str]:
    return [json.loads(line)["instruction"] for line in path.open()]


def test_the_split_is_the_published_one_and_its_parts_are_disjoint(data: Path) -> None:
    assert (data / "split.txt").read_text() == (EXAMPLE / "split.txt").read_text()
    parts = {name: words(data / f"{name}.jsonl") for name in ("train", "valid", "test")}
    counts = {name: len(set(found)) for name, found in parts.items()}
    assert counts == {"train": 109682, "valid": 2605, "test": 12639}
    stems = {
        name: {re.sub(r"('s|')$", "", word.lower()) for word in found}
        for name, found in parts.items()
    }
    assert not stems["train"] & stems["test"]
    assert not stems["train"] & stems["valid"]
    assert not stems["valid"] & stems["test"]


def test_a_word_and_its_forms_are_of_one_part() -> None:
    for word in ("smith", "dog", "artists", "williams"):
        assert part_of(word) == part_of(f"{word}'s") == part_of(f"{word}'")
    found = split([("dog", ["D", "AO1", "G"]), ("dog", ["D", "AA1", "G"]), ("3-d", ["TH", "R"])])
    assert [w for part in found.values() for w in part.items()] == [("dog", ["D AO1 G", "D AA1 G"])]
    assert len(hashes(found)) == (part_of("dog") != "train")
    forms = [written(f"word{i}") for i in range(3200)]
    assert 300 < sum(form.startswith("W") and form[1] == "o" for form in forms) < 500
    assert 140 < sum(form.startswith("WO") for form in forms) < 260


def test_error_rates_count_the_nearest_pronunciation() -> None:
    assert distance("kitten", "sitting") == 3
    assert error_rates({"tomato": "T AH0 M AA1 T OW2"}, ["tomato"], True) == (0, 0)
    assert error_rates({"tomato": "T AH0 M AA1 T OW1"}, ["tomato"], False) == (0, 0)
    per, wer = error_rates({"tomato": "T AH0 M AA1 T"}, ["tomato", "tomato"], False)
    assert (per, wer) == (pytest.approx(1 / 6), 1)
    assert error_rates({}, ["tomato"], False) == (1, 1)


def test_the_model_that_ships_reaches_its_published_error_rate(data: Path) -> None:
    """Every 25th test word, 500 of them; kernels of other processors round a few otherwise. The
    card has the rates of all.
    """
    chosen = words(data / "test.jsonl")[::25][:500]
    assert len(set(chosen)) == 500
    model = load(shipped.bundle("hrm-g2p"), rows=8)
    said = {word: model.generate(word).text for word in chosen}
    per, wer = error_rates(said, chosen, False)
    assert wer == pytest.approx(WER, abs=0.012)
    assert per == pytest.approx(PER, abs=0.006)
    typed = {word: model.generate(word.capitalize()).text for word in chosen[:100]}
    assert sum(typed[word] == said[word] for word in typed) > 90
