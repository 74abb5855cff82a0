"""The default cut-outs: photographs with alpha and a human caption, from a Debian package.

Reads ``/usr/share/tuxpaint/stamps`` where ``tuxpaint-stamps-default`` is installed; otherwise
downloads the package with ``apt-get download`` (nothing is installed, no root needed), unpacks it
with ``dpkg-deb -x`` and keeps it in ``$XDG_CACHE_HOME/capwright`` (``~/.cache/capwright``).
The stamps are GPL-2; they are fetched, never part of this repository.

`LEFT_OUT` says what is not used and why; `CLASS_OF_FOLDER` and `HEIGHTS_M` are the default classes;
`DRAWN` are drawings for a set in another style (drawings.py).
"""

import fnmatch
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from capwright.core.errors import CapwrightError

PACKAGE = "tuxpaint-stamps-default"
INSTALLED = Path("/usr/share/tuxpaint/stamps")

# Pattern of the path below the stamps' folder (fnmatch) -> why it is left out. First match counts.
LEFT_OUT: dict[str, str] = {
    "*_mirror.png": "mirrored twin of another stamp",
    "*_flip.png": "flipped twin of another stamp",
    "symbols/*": "drawn symbols",
    "flags/*": "drawn flags",
    "*cartoon*": "cartoons",
    "seasonal/*": "mostly drawn",
    "town/roadsigns/*": "road signs, drawn",
    "town/*": "too few and too unlike one another",
    "space/*": "planets and space craft have no ground to stand on",
    "people/*": "mostly drawn",
    "*toys/*": "toys are of no real size",
    "medical/*": "too unlike one another",
    "naturalforces/*": "no solid things",
    "military/vehicles/ww2_german_gun.png": "too small and too blurred",
    "military/vehicles/*": "",  # kept: they join the vehicles
    "military/*": "not vehicles",
    "clothes/*": "drawn, not photographed",
    "animals/amphibians/*": "too few for a class",
    "animals/lizards/*": "too few for a class",
    "animals/shellfish/*": "too few for a class",
    "animals/birds/heron_greatblue_flying.png": "seen from below, in flight",
    "animals/fish/lobster.png": "no fish",
    "animals/fish/shrimp.png": "no fish",
    "animals/insects/bee.png": "drawn in ink",
    "animals/mammals/echidna.png": "drawn",
    "animals/mammals/hedgehog.png": "drawn",
    "food/pizza.png": "drawn",
    "food/nuts/*": "too few for a class",
    "food/spices/*": "too few for a class",
    "hobbies/binoculars.png": "too few for a class",
    "hobbies/camera_35mm.png": "too few for a class",
    "household/tools/*": "",
    "household/*": "too unlike one another to be a class",
    "plants/mushrooms/*": "too few for a class",
    "plants/trees/holly_leaves.png": "no tree",
    "plants/trees/pinecone.png": "no tree",
    "sports/*": "too unlike one another to be a class",
    "vehicles/7spoke256.png": "a wheel, no vehicle",
    "vehicles/wheel_tractor.png": "a wheel, no vehicle",
    "vehicles/emergency/sedan_police.png": "emblems, no vehicle",
}

# Drawings, which the scenes leave out: pattern -> class ("": none). First match counts.
DRAWN: dict[str, str] = {
    "*_mirror.png": "",
    "*_flip.png": "",
    "animals/insects/cartoon/snail*": "",
    "animals/insects/cartoon/wings.png": "",
    "animals/insects/cartoon/*": "insects",
    "animals/insects/bee.png": "insects",
    "seasonal/easter/butterfly.png": "insects",
    "animals/birds/cartoon/*": "birds",
    "seasonal/easter/bluebird.png": "birds",
    "seasonal/easter/chick.png": "birds",
    "seasonal/easter/chick-hatched.png": "birds",
    "animals/mammals/bears/cartoon/*": "mammals",
    "animals/mammals/cats/cartoon/*": "mammals",
    "animals/marsupials/cartoon/*": "mammals",
    "animals/mammals/echidna.png": "mammals",
    "animals/mammals/hedgehog.png": "mammals",
    "seasonal/easter/bunny.png": "mammals",
    "seasonal/easter/bunny-head.png": "mammals",
    "seasonal/halloween/blackcat.png": "mammals",
    "food/fruit/cartoon/*": "fruit",
    "vehicles/locomotive/cartoon/trainSign.png": "",
    "vehicles/*/cartoon/*": "vehicles",
}

# A folder named here is one class with everything below it, whatever its sub-folders hold.
CLASS_OF_FOLDER: dict[str, str] = {
    "animals/marsupials": "mammals",
    "hobbies/music": "instruments",
    "military/vehicles": "vehicles",
}

# Real size in metres of the larger side of a cut-out's bounding box, one number a class: the
# distance of a thing then follows from knowing what it is and how large it looks.
HEIGHTS_M: dict[str, float] = {
    "insects": 0.03,
    "fruit": 0.08,
    "flowers": 0.1,
    "vegetables": 0.15,
    "rodents": 0.25,
    "tools": 0.3,
    "fish": 0.4,
    "birds": 0.5,
    "instruments": 0.9,
    "mammals": 1.4,
    "bovines": 2.0,
    "aquatic": 2.5,
    "vehicles": 3.5,
    "trees": 4.5,
}


def left_out(relative: str) -> str:
    """Why the stamp at this path below the stamps' folder is not used ("" where it is)."""
    for pattern, reason in LEFT_OUT.items():
        if fnmatch.fnmatchcase(relative, pattern):
            return reason
    return ""


def drawn_class(relative: str) -> str:
    """The class of the stamp at this path, "" where it is no drawing of one."""
    for pattern, name in DRAWN.items():
        if fnmatch.fnmatchcase(relative, pattern):
            return name
    return ""


def find_stamps() -> Path:
    """The folder of stamps: installed, cached, or fetched now."""
    if INSTALLED.is_dir():
        return INSTALLED
    unpacked = _cache() / PACKAGE
    stamps = unpacked / INSTALLED.relative_to("/")
    if not stamps.is_dir():
        _fetch(unpacked)
    if not stamps.is_dir():
        raise CapwrightError(
            f"the package {PACKAGE} holds no folder {INSTALLED}: pass --cutouts FOLDER "
            "with NAME.png and NAME.txt pairs instead"
        )
    return stamps


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "capwright"


def _fetch(unpacked: Path) -> None:
    """Download and unpack beside the target, then rename: a killed fetch leaves no half folder."""
    unpacked.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=unpacked.parent, prefix="fetch-"))
    try:
        _command(["apt-get", "download", PACKAGE], work)
        packages = sorted(work.glob("*.deb"))
        if not packages:
            raise CapwrightError(_advice("apt-get download left no .deb file"))
        _command(["dpkg-deb", "-x", str(packages[0]), str(work / "unpacked")], work)
        if not unpacked.exists():
            (work / "unpacked").rename(unpacked)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _command(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CapwrightError(_advice(f"{command[0]}: {error}")) from error
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CapwrightError(_advice(f"{' '.join(command[:2])} said {said!r}"))


def _advice(what: str) -> str:
    return (
        f"cannot fetch the default cut-outs ({what}): run 'apt-get update' and try again, "
        f"or 'apt-get install {PACKAGE}', or pass --cutouts FOLDER with NAME.png and NAME.txt pairs"
    )
