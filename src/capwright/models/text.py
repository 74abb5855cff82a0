"""Tokenizers: open_clip's own, or one made of the words of the corpus.

open_clip's byte-pair vocabulary has 49,408 entries; for a small corpus most of the text tower would
be an embedding that is never trained. "corpus-words" takes the most frequent words of the captions
(lower-cased, punctuation and digits apart) and is saved beside the weights as a Hugging Face
tokenizer, so `open_clip.get_tokenizer("local-dir:FOLDER")` gives the same ids.

Writes: `tokenizer.json` and `tokenizer_config.json` in the folder it is given. The vocabulary is a
function of the texts alone (by falling count, then by spelling).
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from capwright.core.files import atomic_path

SPECIAL = ("<pad>", "<start>", "<end>", "<unknown>")
PAD_ID, START_ID, END_ID, UNKNOWN_ID = range(len(SPECIAL))


def write_word_tokenizer(
    folder: Path, texts: Iterable[str], *, vocabulary: int, min_count: int
) -> int:
    """Make a tokenizer of the words that occur `min_count` times in `texts`; return its size.

    At most `vocabulary` entries, the four special ones included. The folder appears when complete.
    """
    import tokenizers
    from tokenizers import normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    splitter = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    counts: Counter[str] = Counter()
    for text, times in Counter(texts).items():  # alt text repeats itself
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)):
            counts[word] += times
    ranked = sorted((-count, word) for word, count in counts.items() if count >= min_count)
    words = [*SPECIAL, *(word for _, word in ranked if word not in SPECIAL)][:vocabulary]

    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(
            {w: i for i, w in enumerate(words)}, unk_token=SPECIAL[UNKNOWN_ID]
        )
    )
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>",
        special_tokens=[("<start>", START_ID), ("<end>", END_ID)],
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL[PAD_ID],
        bos_token=SPECIAL[START_ID],
        eos_token=SPECIAL[END_ID],
        unk_token=SPECIAL[UNKNOWN_ID],
    )
    with atomic_path(folder) as temporary:
        wrapped.save_pretrained(temporary)
    return len(words)


def word_text_config(vocabulary: int) -> Mapping[str, Any]:
    """What open_clip's `text_cfg` needs to use a word tokenizer that lies beside the weights."""
    return {
        "vocab_size": vocabulary,
        "hf_tokenizer_name": "corpus-words",  # any name: a local checkpoint brings its own files
        "pool_type": "eos",
        "pad_id": PAD_ID,
        "eos_id": END_ID,
    }
