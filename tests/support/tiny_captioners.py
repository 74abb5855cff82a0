"""Captioners of transformers with two layers, random weights and a tokenizer of a few words."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

WORDS = "a red green blue square circle dog cat on the left right of grass . describe USER :"
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]

SIZE = {"height": 32, "width": 32}
VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
CHAT = (
    "{% for m in messages %}USER : {% for c in m.content %}{% if c.type == 'image' %}MARK"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endfor %} a :"
)


def tokenizer(*more: str, **named: Any) -> Any:
    """A word is a token."""
    words = [*SPECIAL, *more, *WORDS.split()]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.add_special_tokens([AddedToken(word, special=True) for word in (*SPECIAL, *more)])
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>", **named,
    )  # fmt: skip


def text_config(words: Any, **changes: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(words), "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
        "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        **changes,
    }  # fmt: skip


def blip(folder: Path) -> Any:
    words = tokenizer()
    text = text_config(words, encoder_hidden_size=16, sep_token_id=2)
    config = hf.BlipConfig(text_config=text, vision_config=VISION, projection_dim=16)
    hf.BlipProcessor(hf.BlipImageProcessor(size=SIZE), words).save_pretrained(folder)
    return hf.BlipForConditionalGeneration(config)


def git(folder: Path) -> Any:
    words = tokenizer()
    pixels = hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SIZE)
    hf.GitProcessor(pixels, words).save_pretrained(folder)
    return hf.GitForCausalLM(hf.GitConfig(vision_config=VISION, **text_config(words)))


def encoder_decoder(folder: Path) -> Any:
    words = tokenizer()
    decoder = hf.GPT2Config(
        vocab_size=len(words), n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=1,
        eos_token_id=2, pad_token_id=0, add_cross_attention=True, is_decoder=True,
    )  # fmt: skip
    config = hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        hf.ViTConfig(**VISION), decoder, decoder_start_token_id=1, pad_token_id=0, eos_token_id=2
    )
    hf.ViTImageProcessor(size=SIZE).save_pretrained(folder)
    words.save_pretrained(folder)
    return hf.VisionEncoderDecoderModel(config)


def llava(folder: Path, template: bool = True) -> Any:
    words = tokenizer()
    pixels = hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SIZE)
    hf.LlavaProcessor(
        pixels, words, patch_size=8, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template="<s>" + CHAT.replace("MARK", "<image>") if template else None,
    ).save_pretrained(folder)  # fmt: skip
    vision = hf.CLIPVisionConfig(**VISION)
    text = hf.LlamaConfig(**text_config(words))
    return hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(
            vision_config=vision, text_config=text, image_token_index=4, vision_feature_layer=-1
        )
    )


def qwen(folder: Path) -> Any:
    marks = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    words = tokenizer(*marks)
    pixels = {"patch_size": 4, "min_pixels": 64, "max_pixels": 64 * 64}
    hf.Qwen2VLProcessor(
        hf.Qwen2VLImageProcessor(**pixels), words, hf.Qwen2VLVideoProcessor(**pixels),
        chat_template=CHAT.replace("MARK", "<|vision_start|><|image_pad|><|vision_end|>"),
    ).save_pretrained(folder)  # fmt: skip
    vision = {
        "depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 4,
        "mlp_ratio": 2,
    }  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    return hf.Qwen2VLForConditionalGeneration(
        hf.Qwen2VLConfig(
            text_config=text_config(words, rope_parameters=rope), vision_config=vision,
            vision_start_token_id=5, vision_end_token_id=6, image_token_id=7, video_token_id=8,
        )
    )  # fmt: skip


def idefics(folder: Path) -> Any:
    marks = ("<fake_token_around_image>", "<end_of_utterance>", "<global-img>")
    rows = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
    words = tokenizer(*marks, *rows)
    pixels = hf.Idefics3ImageProcessor(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
    )
    hf.Idefics3Processor(
        pixels, words, image_seq_len=4, chat_template=CHAT.replace("MARK", "<image>")
    ).save_pretrained(folder)
    return hf.Idefics3ForConditionalGeneration(
        hf.Idefics3Config(
            vision_config=VISION, text_config={"model_type": "llama", **text_config(words)},
            scale_factor=2, image_token_id=4, pad_token_id=0,
        )
    )  # fmt: skip


def florence(folder: Path) -> Any:
    places = tuple(f"<loc_{number}>" for number in range(0, 1000, 100))
    words = tokenizer(*places, extra_special_tokens={"image_token": "<image>"})
    side = {"height": 64, "width": 64}
    pixels = hf.CLIPImageProcessor(size=side, crop_size=side)
    pixels.image_seq_length = 5
    parsers = {"pure_text": {}, "description_with_bboxes": {}}
    hf.Florence2Processor(
        pixels, words, num_additional_image_tokens=1, post_processor_config=parsers
    ).save_pretrained(folder)
    text = hf.BartConfig(
        vocab_size=len(words), d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
        pad_token_id=0, decoder_start_token_id=2, forced_eos_token_id=2,
    )  # fmt: skip
    vision = hf.Florence2VisionConfig(
        depths=(1, 1, 1, 1), embed_dim=(8, 8, 8, 16), num_heads=(1, 1, 1, 2),
        num_groups=(1, 1, 1, 2), window_size=4, projection_dim=16, drop_path_rate=0.0,
    )  # fmt: skip
    return hf.Florence2ForConditionalGeneration(
        hf.Florence2Config(text_config=text, vision_config=vision, image_token_id=4)
    )


MODELS = {f.__name__: f for f in (blip, git, encoder_decoder, llava, qwen, idefics, florence)}


def save(make: Callable[..., Any], folder: Path, **options: Any) -> Path:
    """Random weights, large enough that pictures and words matter."""
    folder.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = make(folder, **options)
        for weight in model.parameters():
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder)
    return folder
