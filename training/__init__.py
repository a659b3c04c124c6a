"""Training: from JSONL to a checkpoint directory. `train` is imported when it is first used."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loop import train

__all__ = ["train"]


def __getattr__(name: str) -> Any:
    if name == "train":
        from .loop import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
