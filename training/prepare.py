"""Everything a run needs of its data: tokenizer, tokenized samples, size of the vocabulary."""

from dataclasses import dataclass
from pathlib import Path

from hrm_edge.checkpoint import copy_tokenizer
from hrm_edge.errors import HRMEdgeError
from hrm_edge.files import writing
from hrm_edge.lines import read_lines
from hrm_edge.names import TOKENIZER
from hrm_edge.prompt import SPECIAL_TOKENS, Tokenizer

from .config import TrainConfig
from .data import Samples, tokenize
from .distributed import World
from .tokenizer import train_tokenizer, write_tokenizer


@dataclass(frozen=True)
class Corpus:
    """Tokenized samples to train on and, if given, to evaluate on."""

    train: Samples
    valid: Samples | None
    tokenizer: Path  # a directory
    vocab_size: int
    special_tokens: dict[str, int]


def prepare(config: TrainConfig, data: Path, valid: Path | None, out: Path, world: World) -> Corpus:
    """Tokenizer and samples under `out`, made by the first process and opened by all."""
    _check_split(config, world)
    tokenizer, paths = out / "tokenizer", [data] if valid is None else [data, valid]
    samples: list[Samples] = []
    if world.is_first:
        with writing(out):
            _prepare_tokenizer(config, data, tokenizer)
        samples = [_samples(config, path, tokenizer, out) for path in paths]
    world.barrier()
    samples = samples or [_samples(config, path, tokenizer, out) for path in paths]
    return Corpus(
        samples[0],
        samples[1] if valid is not None else None,
        tokenizer,
        Tokenizer(tokenizer).vocab_size,
        _special_ids(tokenizer),
    )


def _special_ids(folder: Path) -> dict[str, int]:
    """Id of each special token of the prompt. Raises HRMEdgeError if the tokenizer lacks one."""
    tokenizer, ids = Tokenizer(folder), {}
    for name in SPECIAL_TOKENS:
        found = tokenizer.encode(name)
        if len(found) != 1:
            raise HRMEdgeError(f"{folder}: the tokenizer has no token {name}, which prompts need")
        ids[name] = found[0]
    return ids


def _samples(config: TrainConfig, path: Path, tokenizer: Path, out: Path) -> Samples:
    settings = config.data
    return tokenize(
        path,
        tokenizer,
        out / "data",
        condition=settings.condition,
        longest=min(settings.row_length, config.model.max_position_embeddings),
        too_long=settings.too_long,
    )


def _prepare_tokenizer(config: TrainConfig, data: Path, target: Path) -> None:
    source = config.data.tokenizer
    if (target / TOKENIZER).is_file():
        return
    if source:
        Tokenizer(Path(source))  # names the file if it is none
        folder = Path(source) if Path(source).is_dir() else Path(source).parent
        target.mkdir(parents=True, exist_ok=True)
        copy_tokenizer(folder, target)
        return
    lines = (line for line in read_lines(data, config.data.condition) if line is not None)
    texts = (text for line in lines for text in (line.instruction, line.response))
    context = config.model.max_position_embeddings
    write_tokenizer(train_tokenizer(texts, config.data.vocab_size), target, context)


def _check_split(config: TrainConfig, world: World) -> None:
    rows = config.run.batch_tokens // config.data.row_length
    share = rows // world.size
    if rows % world.size or share % (config.run.micro_rows or 1):
        raise HRMEdgeError(
            f"run.batch_tokens {config.run.batch_tokens} makes {rows} rows of "
            f"{config.data.row_length}, expected a multiple of {world.size} processes times "
            f"run.micro_rows {config.run.micro_rows or 1}"
        )
