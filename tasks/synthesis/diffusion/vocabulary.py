"""A small CLIP tokenizer: byte-level pairs learnt on the words of ultrasound prompts. Any text tokenizes."""

import itertools
from collections import Counter
from typing import Any, cast

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

WORDS = tuple(
    """
ultrasound of breast fetal head benign malignant lesion normal tissue standard plane image picture scan a an the with
and in without no healthy mass tumour tumor cyst cancer carcinoma fibroadenoma hypoechoic hyperechoic anechoic oval
round irregular spiculated smooth margin shadow shadowing enhancement posterior taller than wide parallel skin fat
gland muscle skull brain midline first second third trimester grayscale greyscale grey b mode axial transverse
thyroid liver kidney prostate heart lung photo maternal planes
""".split()  # noqa: SIM905 - easier to read and to extend than sixty quoted strings
)
START, END = "<|startoftext|>", "<|endoftext|>"


def build(length: int) -> CLIPTokenizer:
    """The tokenizer, cutting prompts at `length` tokens; every word of WORDS is one token."""
    alphabet = sorted(ByteLevel.alphabet())
    merges = _merges([(*word[:-1], word[-1] + "</w>") for word in WORDS])
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(pair) for pair in merges), START, END]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=cast(Any, merges), model_max_length=length)


def _merges(words: list[tuple[str, ...]]) -> list[tuple[str, str]]:
    """Byte-pair encoding (Sennrich et al. 2016) until every word is one token; ties by alphabet."""
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for word in words for pair in itertools.pairwise(word))
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = [_joined(word, best) for word in words]


def _joined(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    for part in word:
        if out and (out[-1], part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return tuple(out)
