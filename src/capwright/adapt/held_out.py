"""Pictures that are tested on must not be those that are learned from."""

from pathlib import Path

from capwright.core.errors import CapwrightError

Place = tuple[Path, str | None]  # folder of a set, split


def require_held_out(learned: Place, tested: Place) -> None:
    """Raise CapwrightError where both are one split of one folder."""
    (folder, split), (other, other_split) = learned, tested
    if folder.resolve() == other.resolve() and split == other_split:
        part = "" if split is None else f", split {split!r},"
        raise CapwrightError(
            f"{folder}{part} would be learned from and tested on: name another folder with "
            "--test-data, or another split with --set test_split=NAME"
        )
