"""A checkpoint's directory from a path or a Hugging Face id. Fetches data only, never code."""

import re
from pathlib import Path

from hrm_edge import shipped
from hrm_edge.errors import HRMEdgeError
from hrm_edge.names import CONFIG, TOKENIZER_FILES, WEIGHTS_INDEX

PATTERNS = (CONFIG, "*.safetensors", WEIGHTS_INDEX, *TOKENIZER_FILES)


def resolve(source: str | Path, revision: str | None = None, offline: bool = False) -> Path:
    """The directory of `source`: itself if it exists, else the hub's snapshot of that id.

    Downloads resume and are cached as huggingface_hub does it (HF_HOME, HF_TOKEN, HF_ENDPOINT).
    Raises HRMEdgeError if `source` is neither, or cannot be fetched.
    """
    path = Path(source)
    if path.exists():
        return path
    if (inside := shipped.checkpoint(source)) is not None:
        return inside
    if shipped.inside(source) is not None:
        raise HRMEdgeError(f"{source} ships as a bundle, which runs as it is, not as a checkpoint")
    name = str(source)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        known = ", ".join(shipped.MODELS)
        raise HRMEdgeError(
            f"{name}: no such directory, not a Hugging Face id (owner/name), and not one of the "
            f"models inside ({known})"
        )
    return _snapshot(name, revision, offline)


def _snapshot(name: str, revision: str | None, offline: bool) -> Path:
    from huggingface_hub import errors, snapshot_download

    at = f"{name} at revision {revision}" if revision else name
    try:
        return Path(
            snapshot_download(
                name, revision=revision, local_files_only=offline, allow_patterns=list(PATTERNS)
            )
        )
    except errors.GatedRepoError:
        raise HRMEdgeError(
            f"{at}: access is restricted; ask for it on the hub, set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise HRMEdgeError(f"{at}: no such revision on the hub") from None
    except errors.RepositoryNotFoundError:
        raise HRMEdgeError(
            f"{at}: no such directory or model on the hub (private? set HF_TOKEN)"
        ) from None
    except errors.LocalEntryNotFoundError:
        why = "--offline was given" if offline else "the hub cannot be reached"
        raise HRMEdgeError(f"{at}: not in the local cache, and {why}") from None
    except Exception as error:  # the HTTP library below differs between versions of the hub's
        raise HRMEdgeError(f"{at}: download failed ({error})") from None
