"""A tokenizer of bytes, so that models with random weights can be asked in text."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<bos>", "<eos>")
"""Ids 0, 1 and 2; the 256 bytes follow."""
SIZE = len(SPECIAL) + 256


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of one id a byte, without a file; ids from `SIZE` on have no text.

    Ids that are no valid UTF-8 decode to the replacement mark, which is encoded otherwise: most random ids do not
    survive being decoded and encoded again.

    Example:
        >>> tokenizer = byte_tokenizer()
        >>> tokenizer("ab")["input_ids"], tokenizer(tokenizer.decode([150]))["input_ids"] == [150]
        ([67, 68], False)
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate((*SPECIAL, *letters))}
    inner = Tokenizer(models.BPE(vocab, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    pad, bos, eos = SPECIAL
    build: Any = PreTrainedTokenizerFast
    found: PreTrainedTokenizerFast = build(
        tokenizer_object=inner, pad_token=pad, bos_token=bos, eos_token=eos
    )
    return found
