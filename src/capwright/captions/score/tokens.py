"""How many tokens CLIP's text tower sees of a text.

Reads: the byte-pair vocabulary that open_clip ships. Writes nothing.

The numbers are those of open_clip's own tokenizer (`len(SimpleTokenizer().encode(text))`, without
start and end), by the byte-pair encoder of `tokenizers`, which takes whole batches outside Python.
CLIP's context of 77 holds 75 of them; what is beyond is cut.
"""

import gzip
import html
import re
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

CONTEXT_TOKENS = 75  # of 77, start and end taken off
VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
MERGES = 49152 - 256 - 2
MOST_KNOWN = 1_000_000  # words, about 100 MB
SPLIT = (
    r"(?i)<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
# open_clip repairs broken encodings and resolves entities first; plain text has none
UNPLAIN = re.compile(r"[^\x20-\x25\x27-\x7e\t\n]")


_known: dict[str, int] = {}


def count_tokens(texts: Sequence[str]) -> list[int]:
    """Tokens of each text as open_clip counts them, start and end not counted.

    No token crosses white space, so each different word is encoded once and remembered.
    """
    words = [clean(text).split() for text in texts]
    if len(_known) > MOST_KNOWN:
        _known.clear()
    new = {word for row in words for word in row if word not in _known}
    encoded = _encoder().encode_batch_fast(list(new))
    _known.update(zip(new, map(len, encoded), strict=True))
    return [sum(map(_known.__getitem__, row)) for row in words]


def clean(text: str) -> str:
    """What open_clip does to a text before it splits it into words."""
    if UNPLAIN.search(text):
        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return text.lower()


@cache
def _encoder() -> Any:
    import tokenizers
    from tokenizers import pre_tokenizers

    package = find_spec("open_clip")  # found and not imported, which would take torch and seconds
    assert package and package.origin
    with gzip.open(Path(package.origin).parent / VOCABULARY, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : MERGES + 1]
    merges = [(first, second) for first, second in map(str.split, lines)]
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = [*symbols, *(symbol + "</w>" for symbol in symbols), *map("".join, merges)]
    model = tokenizers.models.BPE(
        {token: number for number, token in enumerate(dict.fromkeys(vocabulary))},
        merges,
        end_of_word_suffix="</w>",
    )
    encoder = tokenizers.Tokenizer(model)
    encoder.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(SPLIT), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    encoder.add_special_tokens(["<start_of_text>", "<end_of_text>"])
    return encoder
