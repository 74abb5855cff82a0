"""Tiny models with random weights and their own tokenizers, saved and loaded as any other model."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers as hf
from PIL import Image

from capwright.captions.describe.protocol import Caption
from capwright.captions.describe.regions import CropDescriber
from capwright.captions.describe.sampling import tidy
from capwright.captions.describe.transformers import Config, ImageToText, build
from capwright.captions.prompts import load_prompt
from capwright.core.errors import CapwrightError
from tiny_captioners import MODELS, git, llava, save

SHAPES = [(40, 40), (90, 30), (32, 64), (120, 40), (40, 100)]
PURE = ("blip", "git", "encoder_decoder")


def picture(number: int, size: tuple[int, int] = (40, 40)) -> Image.Image:
    """Coloured noise, another for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (5, 5, 3), np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)


PICTURES = [picture(number, size) for number, size in enumerate(SHAPES)]


class Folders:
    """A folder for each kind of model, made when it is first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __getitem__(self, kind: str) -> Path:
        folder = self.root / f"tiny-{kind}"
        return folder if folder.exists() else save(MODELS[kind], folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    folders = Folders(tmp_path_factory.mktemp("models"))
    build(config(folders["blip"]), "short")  # so that no test waits for the imports
    return folders


def config(folder: Path, **changes: Any) -> Config:
    return Config(**{"model": str(folder), "max_tokens": 8, "device": "cpu", **changes})


@pytest.mark.parametrize("kind", MODELS)
def test_a_batch_of_five_has_the_captions_of_each_alone(folders: Folders, kind: str) -> None:
    describer = build(config(folders[kind], captions=3), "short")
    together = describer.describe(PICTURES)
    assert [describer.describe([one])[0] for one in PICTURES] == together
    assert len({tuple(c.text for c in captions) for captions in together}) == 5
    assert all(len({c.text for c in captions}) > 1 for captions in together)
    assert build(config(folders[kind], captions=3), "short").describe(PICTURES) == together
    other = build(config(folders[kind], captions=3, seed=5), "short").describe(PICTURES)
    assert [c[0] for c in other] == [c[0] for c in together]
    assert other != together


@pytest.mark.parametrize("kind", MODELS)
def test_the_first_caption_is_what_generate_writes(folders: Folders, kind: str) -> None:
    describer = build(config(folders[kind], captions=2), "short")
    assert isinstance(describer, ImageToText)
    loaded, texts = describer.loaded, []
    for one in PICTURES:
        inputs = describer._inputs([one])
        written = loaded.model.generate(**inputs, max_new_tokens=8, do_sample=False, num_beams=1)
        texts.append(describer.describe([one])[0][0].text)
        assert tidy(loaded.tokenizer.decode(written[0], skip_special_tokens=True)).endswith(
            texts[-1]
        )
    assert any(texts)


def test_captions_say_how_they_were_written(folders: Folders) -> None:
    alone = build(config(folders["blip"], captions=2, seed=3), "short").describe(PICTURES[:1])[0]
    assert [(c.prompt, c.seed) for c in alone] == [("greedy", 0), ("top-p 0.9", 3)]
    asked = build(config(folders["llava"], captions=2), "short").describe(PICTURES[:1])[0]
    label = load_prompt("describe-short").label
    assert [c.prompt for c in asked] == [label, f"{label} top-p 0.9"]
    told = build(config(folders["florence"]), "long").describe(PICTURES[:1])[0]
    assert told[0].prompt == "<MORE_DETAILED_CAPTION>"
    assert all(1 <= c.tokens <= 8 for c in (*alone, *asked, *told))


@pytest.mark.parametrize("kind", ["blip", "git", "llava"])
def test_the_prompt_of_a_recipe_matters(folders: Folders, tmp_path: Path, kind: str) -> None:
    written = []
    for words in ("describe the picture", "a red cat on the left of"):
        path = tmp_path / f"{words[:5].strip()}.txt"
        path.write_text(f"version: 2\n\n{words}\n")
        describer = build(config(folders[kind], prompt=str(path), captions=4), "short")
        (captions,) = describer.describe(PICTURES[:1])
        assert captions[0].prompt.startswith(load_prompt(str(path)).label)
        assert not captions[0].text.startswith(words)  # the prompt is no part of the caption
        written.append([c.text for c in captions])
    nothing = build(config(folders[kind], prompt="", captions=4), "short").describe(PICTURES[:1])
    assert [c.text for c in nothing[0]] not in written
    assert written[0] != written[1]


def test_a_model_without_chat_template_is_given_plain_text(
    tmp_path: Path, folders: Folders
) -> None:
    describer = build(config(save(partial(llava, template=False), tmp_path / "plain")), "short")
    assert isinstance(describer, ImageToText)
    assert describer.text == "<image>\n" + load_prompt("describe-short").text
    assert describer.describe(PICTURES[:2]) == [describer.describe([p])[0] for p in PICTURES[:2]]
    with pytest.raises(CapwrightError, match="takes no prompt, but prompt is 'describe-short'"):
        build(config(folders["encoder_decoder"], prompt="describe-short"), "short")


@pytest.mark.parametrize("kind", PURE)
def test_models_that_only_see_whole_pictures_describe_crops(folders: Folders, kind: str) -> None:
    describer = build(config(folders[kind], captions=3), "regions")
    assert isinstance(describer, CropDescriber)
    first, second = describer.describe(PICTURES[:2])
    assert len({c.box for c in first}) == len(first) == 10
    assert len({c.text for c in first + second}) > 1
    with pytest.raises(CapwrightError, match="which has no long captions: describe with a chat"):
        build(config(folders[kind]), "long")


def test_regions_in_the_answer_of_a_chat_model(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    describer = build(config(folders["qwen"], captions=3, max_regions=2), "regions")
    assert isinstance(describer, ImageToText)
    assert "up to 2 things" in describer.text
    label = load_prompt("describe-regions").label
    (captions,) = describer.describe(PICTURES[:1])
    assert [(c.text, c.reason, c.prompt) for c in captions] == [
        ("", "failed: no regions in the answer", label)
    ]
    dogs = [{"box": [n, 0, 500, 500], "caption": f"dog {n}"} for n in (0, 100, 200)]
    monkeypatch.setattr(ImageToText, "_decode", lambda *_, **__: "Sure: " + json.dumps(dogs))
    (captions,) = describer.describe(PICTURES[:1])
    assert [(c.text, c.box, c.prompt) for c in captions] == [
        ("dog 0", (0, 0, 0.5, 0.5), label),
        ("dog 100", (0.1, 0, 0.5, 0.5), label),
    ]
    assert captions[0].tokens > captions[1].tokens == 0  # of one answer


def test_what_a_chat_model_says_around_its_caption_is_left_out(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    describer = build(config(folders["llava"]), "short")
    for answer, text, reason in [
        ('<think>A dog?</think>Sure! Here is a caption: "A red dog."', "A red dog.", ""),
        ("I'm sorry, but I cannot help with that.", "", "failed: refused"),
    ]:
        monkeypatch.setattr(ImageToText, "_decode", lambda *_, said=answer, **__: said)
        (caption,) = describer.describe(PICTURES[:1])[0]
        assert (caption.text, caption.reason) == (text, reason)


def test_dense_region_captions_of_florence(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    describer = build(config(folders["florence"]), "regions")
    assert isinstance(describer, ImageToText)
    answer = (
        "</s><s>a red dog<loc_100><loc_200><loc_500><loc_400>"
        "cat<loc_500><loc_0><loc_900><loc_900><loc_0><loc_0><loc_0><loc_900></s><pad>"
    )
    monkeypatch.setattr(ImageToText, "_decode", lambda *_, **__: answer)
    (captions,) = describer.describe([picture(0, (1000, 1000))])
    assert [(c.text, c.box) for c in captions] == [
        ("a red dog", (0.1, 0.2, 0.5, 0.4)),
        ("cat", (0.5, 0, 0.9, 0.9)),
    ]
    assert {c.prompt for c in captions} == {"<DENSE_REGION_CAPTION>"}


def test_a_picture_that_the_processor_refuses_is_alone_without_caption(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    describer = build(config(folders["blip"]), "short")
    assert isinstance(describer, ImageToText)
    whole, accept = describer.describe(PICTURES), describer._inputs

    def refuse(images: list[Image.Image]) -> Any:
        if SHAPES[3] in [image.size for image in images]:
            raise ValueError("absolute aspect ratio must be smaller than 2")
        return accept(images)

    monkeypatch.setattr(describer, "_inputs", refuse)
    reason = Caption(text="", reason="failed: ValueError in the processor")
    assert describer.describe(PICTURES) == [*whole[:3], [reason], whole[4]]
    assert describer.describe([]) == []


def test_strips_and_half_precision(folders: Folders) -> None:
    describer = build(config(folders["qwen"], precision="bf16", captions=2), "short")
    assert describer.overlap == 2
    captions = describer.describe([picture(0, (1, 900)), picture(1, (900, 1)), picture(2, (1, 1))])
    assert all("processor" not in c.reason for of_picture in captions for c in of_picture)


def test_names_and_revisions(folders: Folders, tmp_path: Path) -> None:
    other = save(git, tmp_path / "tiny-git")
    (other / "extra.json").write_text("{}")
    first, second = (build(config(f), "short") for f in (folders["git"], other))
    assert first.name == second.name == "tiny-git"
    assert len(first.revision) == 12
    assert first.revision != second.revision


def test_models_that_cannot_describe_are_refused(tmp_path: Path, folders: Folders) -> None:
    hf.LlamaConfig().save_pretrained(tmp_path / "text")
    with pytest.raises(CapwrightError, match="is a llama, which describes no pictures: give an"):
        build(config(tmp_path / "text"), "short")
    (tmp_path / "empty").mkdir()
    for name in (tmp_path / "nothing", tmp_path / "empty", Path("nobody/nothing")):
        with pytest.raises(CapwrightError, match=r"could not be loaded \(.*\): give the hub id of"):
            build(config(name), "short")
    torn = shutil.copytree(folders["blip"], tmp_path / "torn")
    (torn / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(CapwrightError, match="could not be loaded"):
        build(config(torn), "short")
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
    (tmp_path / "empty" / "config.json").write_text(json.dumps(own))
    with pytest.raises(CapwrightError, match="trust_remote_code=true"):
        build(config(tmp_path / "empty"), "short")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"captions": 0}, "captions is 0, but must be at least 1"),
        ({"max_tokens": 0}, "max_tokens is 0, but must be at least 1"),
        ({"top_p": 1.5}, "top_p is 1.5, but must be above 0 and at most 1: try 0.9"),
    ],
)
def test_faults_in_the_configuration(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CapwrightError, match=message):
        Config(**changes)
