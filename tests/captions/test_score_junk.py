import re

import numpy as np
import pytest

from capwright.captions.score import junk
from capwright.captions.score.junk import junk_kind, junk_kinds
from capwright.datasets.scenes import captions as scenes

JUNK = {
    "IMG_2034.JPG": "file name",
    "DSC0123": "file name",
    "red-fox-in-snow.jpg": "file name",
    "DCIM/100/1232.jpg": "file name",
    "Screenshot 21232.png": "file name",
    "http://example.com/a.jpg": "url",
    "dailyshots.net": "url",
    "john@site.com": "url",
    "<br/>": "markup",
    "&nbsp;": "markup",
    "free shipping buy now best price": "shop phrase",
    "sale up to 50% off this week only": "shop phrase",
    "Best-sellers": "shop phrase",
    "click to enlarge": "boilerplate",
    "Login": "boilerplate",
    "image may contain: outdoor": "boilerplate",
    "stock photo 21231": "boilerplate",
    "wallpaper 4K": "boilerplate",
    "no description available": "placeholder",
    "banner_40x3": "placeholder",
    "img alt text": "placeholder",
    "SKU 8839-2293-1123 ABX": "mostly digits",
    "2304 4422 x": "no words",
    "2015": "no words",
    "!!!": "no words",
    "😀": "no words",
    "": "no words",
    "the": "no words",
}
GOOD = [
    "dog", "a photo of a cat", "Tamworth pig stock photo 2304", "spotted seal_23.jpg", "кот", "犬",
    "Nike Air Max 90 - free shipping", "a wooden sign that says 'for sale'", "日本の犬",
    "A man clicks on a button", "best friends at home", "<b>hello</b> <i>dog</i>",
    "dog | PicHaven", "penguin (dailyshots.net)", "the logo of Apple", "it's a cat's image",
]  # fmt: skip


@pytest.mark.parametrize("text", JUNK)
def test_junk_is_called_by_its_kind(text: str) -> None:
    assert junk_kind(text) == JUNK[text]
    assert JUNK[text] in junk.KINDS


@pytest.mark.parametrize("text", GOOD)
def test_text_about_something_is_no_junk(text: str) -> None:
    assert junk_kind(text) == ""


def test_a_batch_is_judged_as_one_text_after_the_other() -> None:
    """The hashes that save most texts from a closer look overlook no junk."""
    rng = np.random.default_rng(0)
    names = [*scenes._FILE_NAMES, *scenes._JUNK_WORDS]
    drawn = [scenes._fill(rng, scenes._pick(rng, names)) for _ in range(400)]
    named = [scenes._named(rng, "a Tamworth pig") for _ in range(200)]
    listed = "\n".join([junk._SHOP, junk._BOILERPLATE, junk._PLACEHOLDER, junk._CAMERAS])
    plain = re.sub(r"\(\?:|\)\*|[()?+]|\\d|\\S|\[[^]]*\]", "", listed)
    phrases = [phrase for phrase in re.split(r"[|\n]", plain) if phrase]
    texts = [*JUNK, *GOOD, *drawn, *named, *phrases, *(f"<{p}>, [{p}]!" for p in phrases)]
    kinds = junk_kinds(texts)
    assert kinds == [junk_kind(text) for text in texts]
    assert all(kinds[len(JUNK) + len(GOOD) :][: len(drawn)])
    lone = re.compile(r"\S+\.jpg")
    assert not any(
        kind
        for text, kind in zip(named, kinds[-len(named) - 2 * len(phrases) :], strict=False)
        if not lone.fullmatch(text)
    )


def test_no_texts() -> None:
    assert junk_kinds([]) == []
