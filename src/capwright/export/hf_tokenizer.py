"""The tokenizer of an exported `CLIPModel`: open_clip's byte pairs, or the checkpoint's own words.

Writes Hugging Face tokenizer files whose ids are the checkpoint's, apart from one swap that
`hugging_face.py` asks for. open_clip repairs broken Unicode and HTML entities in a text before it
cuts it (ftfy); Hugging Face's tokenizers do not.
"""

import json
from pathlib import Path
from typing import Any

from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

from capwright.core.errors import CapwrightError
from capwright.export.source import Source

START, END = "<|startoftext|>", "<|endoftext|>"  # Hugging Face's names of the two special tokens


def end_id(source: Source) -> int:
    """The id that ends a text and at which the text tower pools."""
    text, tokenizer = source.model.text, source.tokenizer
    if text.pool_type == "eos":
        return int(text.eos_id)
    simple = isinstance(tokenizer, SimpleTokenizer)
    end = tokenizer.eot_token_id if simple else tokenizer.tokenizer.eos_token_id
    largest = tokenizer.vocab_size if simple else len(tokenizer.tokenizer)
    if end is None or int(end) != largest - 1:
        raise CapwrightError(
            f"the text tower pools at the largest id of a text, but the end token has {end} of "
            f"{largest} ids, which Hugging Face's CLIPModel cannot be: use --to open_clip"
        )
    return int(end)


def write_tokenizer(source: Source, folder: Path, *, swap: tuple[int, int]) -> dict[str, int]:
    """Write the files with the two ids of `swap` exchanged; return the special ids for the config.

    Raises CapwrightError for a tokenizer that Hugging Face's files cannot express.
    """
    options = source.config["text_cfg"].get("tokenizer_kwargs") or {}
    mode = source.config["text_cfg"].get("tokenizer_mode")
    if options or mode:
        raise CapwrightError(
            f"the tokenizer cleans or cuts texts in its own way ({options or mode}), which "
            "Hugging Face's CLIP tokenizer cannot do: use --to open_clip"
        )
    length = source.model.text.context_length
    if isinstance(source.tokenizer, SimpleTokenizer):
        tokenizer = _byte_pairs(source.tokenizer, length)
    elif isinstance(source.tokenizer, HFTokenizer):
        tokenizer = _words(source.tokenizer.tokenizer, length, swap)
    else:
        raise CapwrightError(
            f"the tokenizer is a {type(source.tokenizer).__name__}, which has no Hugging Face "
            "files: use --to open_clip"
        )
    tokenizer.save_pretrained(folder)
    special = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return {name: int(value) for name, value in special.items() if value is not None}


def _byte_pairs(simple: SimpleTokenizer, length: int) -> Any:
    from transformers import CLIPTokenizer

    names = {simple.sot_token_id: START, simple.eot_token_id: END}
    vocabulary = {names.get(i, token): i for token, i in simple.encoder.items()}
    merges = [tuple(pair) for pair in sorted(simple.bpe_ranks, key=simple.bpe_ranks.__getitem__)]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)


def _words(tokenizer: Any, length: int, swap: tuple[int, int]) -> Any:
    """A Hugging Face tokenizer with two ids exchanged everywhere they are written."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    described = json.loads(tokenizer.backend_tokenizer.to_str())
    if swap[0] != swap[1]:
        vocabulary = described["model"].get("vocab")
        if not isinstance(vocabulary, dict) or swap[1] not in vocabulary.values():
            raise CapwrightError(
                f"the end token has the id {swap[0]}, at which Hugging Face's CLIPModel does not "
                f"pool, and the tokenizer has no id {swap[1]} to exchange it with: "
                "use --to open_clip"
            )
        other = {swap[0]: swap[1], swap[1]: swap[0]}
        described["model"]["vocab"] = {w: other.get(i, i) for w, i in vocabulary.items()}
        for token in described.get("added_tokens", ()):
            token["id"] = other.get(token["id"], token["id"])
        for token in (described["post_processor"] or {}).get("special_tokens", {}).values():
            token["ids"] = [other.get(i, i) for i in token["ids"]]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(json.dumps(described)),
        model_max_length=length,
        **{f"{kind}_token": getattr(tokenizer, f"{kind}_token") for kind in _KINDS},
    )


_KINDS = ("bos", "eos", "unk", "pad")
