"""The web's pictures: turned, animated, CMYK, 16-bit, long, huge, cut, and none at all."""

import io
import subprocess
import sys

import numpy as np
import pytest
import torchvision.transforms as transforms
from numpy.typing import NDArray
from PIL import Image

from capwright.corpus.pictures import MAX_PIXELS, PictureError, decode_rgb, facts, open_picture


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise with the spectrum of a photograph, amplitude falling as 1/f^1.5."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    noise = rng.normal(size=(3, *frequency.shape)) + 1j * rng.normal(size=(3, *frequency.shape))
    channels = np.fft.irfft2(noise / frequency**1.5, (height, width))
    channels = (channels - channels.mean()) / channels.std() * 50 + 120
    return Image.fromarray(channels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def plain(data: bytes, size: int) -> NDArray[np.uint8]:
    crop = transforms.Compose(
        [
            transforms.Resize(size, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
        ]
    )
    return np.asarray(crop(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("size", [(1024, 768), (600, 901), (640, 641)])
def test_scaled_decode_gives_the_picture_of_the_plain_way(size: tuple[int, int]) -> None:
    data = encoded(photograph(*size), "JPEG", quality=90)
    difference = decode_rgb(data, size=224).astype(int) - plain(data, 224)
    assert np.abs(difference).mean() < 1.5


def test_a_png_is_exactly_what_torchvision_makes_of_it() -> None:
    data = encoded(photograph(301, 230), "PNG")
    assert np.abs(decode_rgb(data, size=64).astype(int) - plain(data, 64)).max() <= 1


def test_a_turned_picture_is_turned_back() -> None:
    image = Image.new("RGB", (80, 40), (255, 0, 0))
    image.paste((0, 0, 255), (0, 0, 40, 40))  # blue left, red right
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: blue comes to the top
    for kind in ("JPEG", "PNG"):
        data = encoded(image, kind, exif=exif)
        assert facts(data)[:2] == (40, 80)
        pixels = np.asarray(open_picture(data))
        assert pixels.shape == (80, 40, 3)
        assert pixels[10, 20, 2] > 200 and pixels[70, 20, 0] > 200


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    for kind in ("GIF", "WEBP"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert np.asarray(open_picture(data))[5, 5, 0] > 200


def test_cmyk_16_bit_and_palette_become_rgb() -> None:
    red = Image.new("RGB", (32, 24), (250, 10, 10))
    cmyk = encoded(red.convert("CMYK"), "JPEG")
    palette = encoded(red.convert("P"), "PNG")
    alpha = encoded(red.convert("RGBA"), "WEBP")
    for data in (cmyk, palette, alpha):
        assert np.asarray(open_picture(data))[5, 5, 0] > 200
        assert np.asarray(open_picture(data))[5, 5, 1] < 60
    ramp = np.linspace(0, 65535, 32 * 24).reshape(24, 32).astype(np.uint16)
    grey = decode_rgb(encoded(Image.fromarray(ramp), "PNG"))
    assert abs(int(grey[12, 0, 0]) - 128) < 4 and grey[-1, -1, 0] == 255


def test_a_thin_picture_stays_small() -> None:
    data = encoded(Image.new("RGB", (1, 60_000), (9, 9, 9)), "PNG")
    assert facts(data)[:2] == (1, 60_000)
    assert decode_rgb(data, size=224).shape == (224, 224, 3)
    assert open_picture(data, max_side=768).size == (1, 768)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "unreadable picture: UnidentifiedImageError"),
        (b"<html>404</html>", "unreadable picture: UnidentifiedImageError"),
        (encoded(photograph(200, 200), "JPEG")[:3000], "unreadable picture: OSError"),
        (encoded(photograph(200, 200), "PNG")[:3000], "unreadable picture: OSError"),
        (encoded(Image.new("F", (8, 8)), "TIFF"), "picture of floating-point numbers"),
    ],
)
def test_what_is_no_picture_has_a_reason_to_count(data: bytes, reason: str) -> None:
    for decode in (facts, open_picture, lambda d: decode_rgb(d, size=16)):
        with pytest.raises(PictureError) as error:
            decode(data)
        assert str(error.value) == reason


def test_a_bomb_is_not_decoded() -> None:
    side = int(MAX_PIXELS**0.5) + 1
    data = encoded(Image.new("1", (side, side)), "PNG")
    assert len(data) < 200_000
    with pytest.raises(PictureError, match="picture with too many pixels"):
        facts(data)


@pytest.mark.slow
def test_the_largest_picture_takes_less_than_two_gigabytes() -> None:
    code = (
        "import io, resource\nfrom concurrent.futures import ThreadPoolExecutor\n"
        "from PIL import Image\nfrom capwright.corpus.pictures import open_picture\n"
        "buffer = io.BytesIO()\nImage.new('RGBA', (9400, 9400)).save(buffer, 'PNG')\n"
        "with ThreadPoolExecutor(4) as pool:\n"
        "    list(pool.map(lambda _: open_picture(buffer.getvalue(), max_side=768), range(4)))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(ran.stdout) * 1024 < 2e9


def test_the_perceptual_hash_is_that_of_a_copy_and_not_of_another() -> None:
    image = photograph(320, 240)
    one = facts(encoded(image, "JPEG", quality=95)).phash
    copy = facts(encoded(image.resize((200, 150)), "WEBP", quality=60)).phash
    other = facts(encoded(photograph(320, 240, seed=1), "JPEG")).phash
    assert bin((one ^ copy) & (2**64 - 1)).count("1") <= 6
    assert bin((one ^ other) & (2**64 - 1)).count("1") > 16
