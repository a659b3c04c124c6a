"""Is an answer right? The rules of the reference's evaluation, one function for each kind of task.

All take the text of an answer and what is right, and give a score from 0 to 1.
"""

import re
import string
from collections.abc import Sequence

BOXED = "\\boxed{"
LETTERS = string.ascii_uppercase


def exact(text: str, gold: str) -> float:
    """1 for the same text, but for space around it."""
    return float(text.strip() == gold.strip())


def integer(text: str, gold: int) -> float:
    """GSM8K: what stands in the last \\boxed{}, else the whole text, as a whole number."""
    found = boxed(text)
    told = (text if found is None else found).replace(",", "").replace("$", "").strip()
    try:
        return float(int(told) == gold)
    except ValueError:
        return 0.0


def mathematical(text: str, gold: str) -> float:
    """MATH: whether math-verify finds the answer equal to that of the solution `gold`.

    To be called in the main thread, where math-verify can end what takes too long.
    """
    from math_verify import parse, verify

    return float(verify(parse(gold), parse(text)))


def letter(text: str, gold: int, choices: int) -> float | None:
    """Whether `text` is the letter of choice `gold`; None if it is none of the `choices`."""
    told = text.strip()
    if len(told) != 1 or told not in LETTERS[:choices]:
        return None
    return float(LETTERS.index(told) == gold)


def boxed(text: str) -> str | None:
    """What stands in the last \\boxed{} of `text`, braces in it balanced; None without one."""
    start = text.rfind(BOXED)
    if start < 0:
        return None
    depth, inner = 1, text[start + len(BOXED) :]
    for i, character in enumerate(inner):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return inner[:i]
    return None


def drop(text: str, golds: Sequence[Sequence[str]]) -> tuple[float, float]:
    """DROP's exact match and F1, the best over `golds`, each a list of spans.

    As lm-eval computes them (lm_eval/tasks/drop/utils.py, MIT, after AllenNLP's): the answer is one
    span, so of a gold list at most one span is matched, and F1 is divided by their number.
    """
    told = _normal(text)
    em = f1 = 0.0
    for gold in golds:
        if not gold[0].strip():
            continue
        spans = [_normal(span) for span in gold]
        em = max(em, float(len(spans) == 1 and spans[0] == told))
        best = max(_overlap(set(told.split()), set(span.split())) for span in spans)
        f1 = max(f1, round(best / len(spans), 2))
    return em, f1


def _overlap(told: set[str], gold: set[str]) -> float:
    """F1 of two bags of words, 0 where `gold` has numbers and none of them was told."""
    numbers = {word for word in gold if _is_number(word)}
    if numbers and not numbers & told:
        return 0.0
    common = len(told & gold)
    precision = common / len(told) if told else 1.0
    recall = common / len(gold) if gold else 1.0
    return 2 * precision * recall / (precision + recall) if precision or recall else 0.0


def _normal(text: str) -> str:
    """Lower case, numbers as floats, without articles, punctuation and needless space."""
    words = (_normal_word(word.lower()) for word in re.split(" |-", text))
    return " ".join(word for word in words if word).strip()


def _normal_word(word: str) -> str:
    if not _is_number(word):
        word = "".join(c for c in word if c not in string.punctuation)
    if _is_number(word):
        word = str(float(word))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", word).split())


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
