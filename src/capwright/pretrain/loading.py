"""What a step needs, by the step's number, read ahead by processes."""

from collections.abc import Iterator
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset

from capwright.core.errors import CapwrightError
from capwright.pretrain import signals

Item = TypeVar("Item")


def in_steps(
    source: Dataset[Item], steps: range, workers: int, *, pin_memory: bool = False
) -> Iterator[tuple[int, Item]]:
    """(step, `source[step]`) of every step in order; a CapwrightError comes as it was raised."""
    if not workers:
        yield from ((step, source[step]) for step in steps)
        return
    loader: Any = DataLoader(
        _ErrorsAsValues(source),
        sampler=steps,
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=signals.leave_to_the_parent,
        pin_memory=pin_memory,
    )
    for step, item in zip(steps, loader, strict=True):
        if isinstance(item, CapwrightError):
            raise item
        yield step, item


class _ErrorsAsValues(Dataset[Any]):
    """For a loader's process, which would wrap an error that is raised in a traceback."""

    def __init__(self, source: Dataset[Any]) -> None:
        self.source = source

    def __getitem__(self, step: int) -> Any:
        try:
            return self.source[step]
        except CapwrightError as error:
            return error


def _as_it_is(item: Any) -> Any:
    return item
