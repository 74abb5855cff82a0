"""The embedded captioner's network: a transformer decoder that reads what the concept head saw.

Reads and writes: a folder with `decoder.safetensors`, `concepts.safetensors`, `tokenizer.json` and
`captioner.json`.

Algorithm: transformers' GPT-2 with cross-attention (arXiv 1706.03762), so that its `generate` gives
beams, top-p and caching. It attends to two kinds of memory: one token for each of the picture's
likeliest names (the mean of the name's own word embeddings, so that the decoder copies names
rather than recalls them, plus how likely it is and where it is), and one for each cell of
the deep feature map. The first token of a text is its style, `<web>` or `<human>`.

Shapes: B pictures, T tokens, M cells of the deep map, C channels, K names, P numbers about a
name's place, W words of a name, D width.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging as transformers_logging

from capwright.captions.describe.concepts import PLACE, BestConcepts, ConceptConfig, ConceptHead
from capwright.captions.lexicon import Lexicon, is_word, split_words
from capwright.core.config import as_dict
from capwright.core.files import atomic_path, read_json, write_json
from capwright.models.trunk import DEEP_CHANNELS
from capwright.pretrain.precision import arithmetic

transformers_logging.set_verbosity_error()  # it warns of a padded prompt, which there never is

PAD, UNKNOWN, END, WEB, HUMAN = "<pad>", "<unk>", "<end>", "<web>", "<human>"
SPACING = 0.25
CENTRES = tuple(SPACING * step for step in range(-4, 5))  # of the bumps that numbers are read with
SPECIAL = (PAD, UNKNOWN, END, WEB, HUMAN)


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The text decoder."""

    width: int = 192
    """Channels."""
    layers: int = 3
    """Decoder blocks."""
    heads: int = 4
    """Attention heads; a divisor of the width."""
    dropout: float = 0.1
    """Everywhere in the decoder."""
    max_tokens: int = 48
    """The longest text, with its style and its end."""
    concepts: int = 6
    """Names that the decoder is shown for a picture."""


class WordCodec:
    """Texts to word numbers and back; words are lower case, and proper names get theirs back."""

    def __init__(self, tokenizer: Tokenizer, written: dict[str, str]) -> None:
        self.tokenizer, self.written = tokenizer, written

    @classmethod
    def build(cls, human: Sequence[str], web: Sequence[str], min_count: int = 2) -> "WordCodec":
        """All words of people's captions, and those that the web's texts use `min_count` times."""
        counts = Counter(w.lower() for text in web for w in split_words(text) if is_word(w))
        words = {w for w, n in counts.items() if n >= min_count}
        words |= {w.lower() for text in human for w in split_words(text)}
        vocabulary = {word: i for i, word in enumerate([*SPECIAL, *sorted(words)])}
        # split_words has split the text, so the tokenizer itself only looks words up
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
        return cls(tokenizer, _written_forms([*human, *web]))

    def __len__(self) -> int:
        return int(self.tokenizer.get_vocab_size())

    def id(self, token: str) -> int:
        """The number of a token; that of `<unk>` where it is unknown."""
        number = self.tokenizer.token_to_id(token)
        return SPECIAL.index(UNKNOWN) if number is None else int(number)

    def words(self, text: str) -> list[int]:
        """Numbers of a text's words, unknown ones left out."""
        numbers = (self.tokenizer.token_to_id(w.lower()) for w in split_words(text))
        return [number for number in numbers if number is not None]

    def encode(self, text: str, style: str, max_tokens: int) -> list[int]:
        """Style, words, end; cut to `max_tokens`."""
        return [self.id(style), *self.words(text)[: max_tokens - 2], self.id(END)]

    def decode(self, numbers: Iterable[int]) -> str:
        """The text up to its end mark, with its capitals and spaces as people write them."""
        words: list[str] = []
        for number in numbers:
            token = self.tokenizer.id_to_token(int(number)) or UNKNOWN
            if token == END:
                break
            if token not in SPECIAL:
                words.append(self.written.get(token, token))
        text = re.sub(r"\s+([,;:.!?)])", r"\1", " ".join(words))
        return text[:1].upper() + text[1:]


class Captioner(nn.Module):
    """Feature cells and likely names → a text, one word after the other."""

    name_words_VW: Tensor

    def __init__(self, codec: WordCodec, lexicon: Lexicon, config: DecoderConfig) -> None:
        super().__init__()
        self.config, self.codec, self.lexicon = config, codec, lexicon
        special = {
            "bos_token_id": codec.id(HUMAN),
            "eos_token_id": codec.id(END),
            "pad_token_id": codec.id(PAD),
        }
        self.decoder = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(codec),
                n_positions=config.max_tokens,
                n_embd=config.width,
                n_layer=config.layers,
                n_head=config.heads,
                resid_pdrop=config.dropout,
                embd_pdrop=config.dropout,
                attn_pdrop=config.dropout,
                add_cross_attention=True,
                loss_type="ForCausalLM",
                attn_implementation="eager",  # the fused kernel's backward pass is slow here
                **special,
            )
        )
        self.cell = nn.Linear(DEEP_CHANNELS, config.width)
        self.cell_norm = nn.LayerNorm(config.width)
        self.row = nn.Parameter(torch.randn(16, config.width) * 0.02)
        self.column = nn.Parameter(torch.randn(16, config.width) * 0.02)
        self.place = nn.Linear((2 + len(PLACE)) * len(CENTRES), config.width)
        self.place_norm = nn.LayerNorm(config.width)
        self.name_norm = nn.LayerNorm(config.width)
        self.register_buffer("name_words_VW", _name_words(codec, lexicon), persistent=False)

    def memory(
        self, deep_BMC: Tensor, names_BK: Tensor, likely_BK: Tensor, place_BKP: Tensor
    ) -> Tensor:
        """What the decoder attends to: [B, K + M, D]."""
        words_BKW = self.name_words_VW[names_BK]
        there = (words_BKW != self.codec.id(PAD))[..., None]
        embedded = self.decoder.get_input_embeddings()(words_BKW)
        name_BKD = (embedded * there).sum(2) / there.sum(2).clamp(min=1)
        odds = torch.logit(likely_BK.clamp(1e-3, 1 - 1e-3)) / 4
        numbers = torch.cat([likely_BK[..., None], odds[..., None], place_BKP], -1)
        # each normed by itself, so that neither the name nor its place drowns the other
        names = self.name_norm(name_BKD) + self.place_norm(self.place(_bumps(numbers)))
        side = int(deep_BMC.shape[1] ** 0.5)
        grid = self.row[:side, None] + self.column[None, :side]
        cells = self.cell_norm(self.cell(deep_BMC)) + grid.flatten(0, 1)
        return torch.cat([names, cells], 1)

    def loss(self, tokens_BT: Tensor, memory_BSD: Tensor) -> Tensor:
        """Mean cross-entropy of the next token; padding does not count."""
        pad = self.codec.id(PAD)
        labels_BT = tokens_BT.masked_fill(tokens_BT == pad, -100)
        output = self.decoder(
            input_ids=tokens_BT,
            attention_mask=tokens_BT != pad,
            encoder_hidden_states=memory_BSD,
            labels=labels_BT,
        )
        loss: Tensor = output.loss
        return loss

    @torch.no_grad()
    def write(self, memory_BSD: Tensor, **how: object) -> list[str]:
        """Captions in the people's style; `how` goes to transformers' `generate`."""
        start = torch.full((len(memory_BSD), 1), self.codec.id(HUMAN))
        with arithmetic("auto", memory_BSD.device):
            written = self._generate(start, memory_BSD, how)
        return [self.codec.decode(row) for row in written[:, 1:].tolist()]

    def _generate(self, start: Tensor, memory_BSD: Tensor, how: dict[str, object]) -> Tensor:
        written: Tensor = self.decoder.generate(
            start,
            attention_mask=torch.ones_like(start),
            encoder_hidden_states=memory_BSD,
            max_length=self.config.max_tokens,
            **how,
        )
        return written


def _bumps(numbers_BKP: Tensor) -> Tensor:
    """How near each number is to each of `CENTRES`: a linear layer can then read any range."""
    near = (numbers_BKP[..., None] - torch.tensor(CENTRES)) / SPACING
    return near.square().neg().exp().flatten(-2)


def concept_tensors(best: BestConcepts) -> tuple[Tensor, Tensor, Tensor]:
    """`BestConcepts` as the last three arguments of `Captioner.memory`."""
    return (
        torch.from_numpy(best.names),
        torch.from_numpy(best.probabilities),
        torch.from_numpy(best.places),
    )


def pad_tokens(rows: Sequence[Sequence[int]], pad: int) -> Tensor:
    """[B, T] with T the longest row."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])


def save_captioner(
    folder: Path, head: ConceptHead, concepts: ConceptConfig, captioner: Captioner
) -> None:
    """Write everything that `load_captioner` needs, the folder at once."""
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        save_file(head.state_dict(), temporary / "concepts.safetensors")
        state = {k: v for k, v in captioner.state_dict().items() if k != "decoder.lm_head.weight"}
        save_file(state, temporary / "decoder.safetensors")  # lm_head is the embedding, tied
        captioner.codec.tokenizer.save(str(temporary / "tokenizer.json"))
        write_json(
            temporary / "captioner.json",
            {
                "names": list(captioner.lexicon.names),
                "written": captioner.codec.written,
                "decoder": as_dict(captioner.config),
                "concepts": as_dict(concepts),
            },
        )


def load_captioner(folder: Path) -> tuple[ConceptHead, Captioner]:
    """The concept head and the captioner, in eval mode."""
    saved = read_json(folder / "captioner.json")
    codec = WordCodec(Tokenizer.from_file(str(folder / "tokenizer.json")), saved["written"])
    lexicon = Lexicon(tuple(saved["names"]))
    head = ConceptHead(len(lexicon), ConceptConfig(**saved["concepts"]))
    head.load_state_dict(load_file(folder / "concepts.safetensors"))
    captioner = Captioner(codec, lexicon, DecoderConfig(**saved["decoder"]))
    missing = captioner.load_state_dict(load_file(folder / "decoder.safetensors"), strict=False)
    assert missing.missing_keys in ([], ["decoder.lm_head.weight"]), missing
    return head.eval(), captioner.eval()


def _name_words(codec: WordCodec, lexicon: Lexicon) -> Tensor:
    rows = [codec.words(name) or [codec.id(UNKNOWN)] for name in lexicon.names]
    return pad_tokens(rows or [[codec.id(PAD)]], codec.id(PAD))


def _written_forms(texts: Iterable[str]) -> dict[str, str]:
    """Words that texts mostly write with capitals inside a sentence: {"adelaide": "Adelaide"}."""
    forms: dict[str, Counter[str]] = {}
    for text in texts:
        for word in split_words(text)[1:]:
            if is_word(word):
                forms.setdefault(word.lower(), Counter())[word] += 1
    best = {word: max(found, key=lambda w: (found[w], w)) for word, found in forms.items()}
    return {word: form for word, form in best.items() if form != word}
