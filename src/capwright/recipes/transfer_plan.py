"""The plan of `capwright transfer`: a recipe with the encoder, the folders and the fractions."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from capwright.core.config import override
from capwright.core.errors import CapwrightError
from capwright.evaluate.transfer.config import TransferConfig
from capwright.recipes.load import load_recipe


def transfer_plan(
    task: str, recipe: str, options: Mapping[str, Any], settings: Sequence[str]
) -> TransferConfig:
    """`options` of the command line (None: the recipe's own), then `settings`, KEY=VALUE.

    Raises CapwrightError for a recipe of another task or stage, and for a setting without effect.
    """
    config = load_recipe(recipe)
    if not isinstance(config, TransferConfig) or config.task != task:
        kind = f"the task {config.task!r}" if isinstance(config, TransferConfig) else "no transfer"
        raise CapwrightError(
            f"recipe {recipe!r} is of {kind}, not of {task!r}: name one of that task, such as "
            f"scenes_{task}"
        )
    given = {name: value for name, value in options.items() if value is not None}
    if "seeds" in given:
        given["seeds"] = tuple(range(given["seeds"]))
    changed = override(replace(config, **given), settings)
    _require_heard(changed, settings)
    return changed


def _require_heard(config: TransferConfig, settings: Sequence[str]) -> None:
    """Raise CapwrightError for a setting of a schedule that fresh weights do not learn by."""
    if config.schedule_used is config.schedule:
        return
    keys = {setting.partition("=")[0].strip() for setting in settings}
    for key in sorted(keys):
        if key.partition(".")[0] == "schedule" and f"scratch_{key}" not in keys:
            raise CapwrightError(
                f"setting {key!r} changes nothing: fresh weights learn by the recipe's "
                f"scratch_schedule; set 'scratch_{key}', or scratch_schedule=null to take schedule"
            )
