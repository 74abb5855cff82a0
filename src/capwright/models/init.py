"""Weights to begin with: from open_clip, the Hub, a checkpoint, a file or a timm backbone.

What fits by name is loaded, after these changes, each of which the report names:

- both forms of open_clip's names (text tower at the top, or below `text.`) and Apple's MobileCLIP;
- `module.` and `_orig_mod.` prefixes of wrapped models, and open_clip's training checkpoints;
- image positions are interpolated to the tower's grid (open_clip's and timm's functions);
- text positions are stretched to a longer context as Long-CLIP does (Zhang et al.,
  arXiv 2403.15378): the first 20, which are trained well, are kept, and the others interpolated.
  With n old and m new positions, k kept, new position k + j is at the place t = j (n - k) / (m - k)
  between the old ones after k, linearly, and beyond the last one by continuing its slope. A shorter
  context takes the first positions.

Files are read with `weights_only=True`: no code runs from them.

Shapes: N positions, D features.
"""

import json
import pickle
import types
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed
from open_clip.pretrained import (
    download_pretrained,
    download_pretrained_from_hf,
    get_pretrained_cfg,
)
from open_clip.transformer import QuickGELU
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from capwright.core.errors import CapwrightError
from capwright.models import towers

FILES = (".pt", ".pth", ".bin", ".safetensors")
KEPT_POSITIONS = 20  # of the text, when the context grows; Long-CLIP's value
TOWERS = ("image", "text")
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # in files of OpenAI
TIMM = "timm:"


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """What was loaded, by the model's names."""

    source: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]  # of the towers asked for, not in the source: they stay as they were
    unused: tuple[str, ...]  # in the source, not in the model
    resized: tuple[str, ...]  # loaded, but for another image size or context length

    def __str__(self) -> str:
        """One line for the plan of a run."""
        text = f"{len(self.loaded)} tensors of {self.source}"
        for what in ("resized", "missing", "unused"):
            names = getattr(self, what)
            if names:
                more = ", …" if len(names) > 3 else ""
                text += f"; {len(names)} {what} ({', '.join(names[:3])}{more})"
        return text


def load_initial(
    model: Any,
    init: str | Path,
    *,
    only: Collection[str] = TOWERS,
    kept_positions: int = KEPT_POSITIONS,
) -> InitialWeights:
    """Load weights into a model of `towers.build`, before it is wrapped for many processes.

    `init` is open_clip's `MODEL/TAG`, `hf-hub:ORG/REPOSITORY`, a checkpoint folder, a run folder, a
    file of weights (of a CLIP model, or of a timm backbone for the image tower), or `timm:NAME` for
    the pretrained backbone of that name. `only` says which towers take part ("image", "text"); the
    temperature comes along with both. `kept_positions` of the text stay when the context grows.
    Raises CapwrightError where nothing fits, or a tensor has another shape.
    """
    _check_towers(only)
    _check_activation(model, init)
    state = _renamed(model, _read(init))
    own = {name: value for name, value in model.state_dict().items() if _belongs(name, only)}
    found = {name: value for name, value in state.items() if name in own}
    if not found:
        raise CapwrightError(
            f"init {str(init)!r} has no weights that this model has (it has for example "
            f"{next(iter(state), 'nothing')!r}): choose the model that they are of"
        )
    resized = _resize(model, found, own, kept_positions)
    for name, value in found.items():
        if value.shape != own[name].shape:
            hint = "the tokenizer's vocabulary must be that of the weights"
            raise CapwrightError(
                f"init {str(init)!r} does not fit the model: {name} is {_shape(value)}, the model "
                f"has {_shape(own[name])}; "
                + (hint if "token_embedding" in name else "choose the model that it is of")
            )
    with torch.no_grad():
        for name, value in found.items():
            own[name].copy_(value)
    return InitialWeights(
        source=str(init),
        loaded=tuple(found),
        missing=tuple(name for name in own if name not in found),
        unused=tuple(name for name in state if name not in found and _belongs(name, only)),
        resized=resized,
    )


def tokenizer_of(init: str | Path, context_length: int | None = None) -> Any | None:
    """The tokenizer that belongs to initial weights; None where they do not say (files, timm).

    Token numbers mean nothing to another vocabulary, so text weights need this one. None leaves the
    choice to the model's configuration, which then must have the same vocabulary.
    """
    if _is_file(init) or str(init).startswith(TIMM):
        return None
    name, _ = towers.resolve(init)
    with towers.quiet_open_clip():
        return open_clip.get_tokenizer(name, context_length=context_length)


def preprocessing_of(init: str | Path) -> dict[str, Any]:
    """What initial weights expect of pictures: `mean`, `std`; {} where they do not say (files)."""
    if _is_file(init):
        return {}
    if str(init).startswith(TIMM):
        timm_cfg = timm.get_pretrained_cfg(str(init).removeprefix(TIMM))
        return {"mean": list(timm_cfg.mean), "std": list(timm_cfg.std)} if timm_cfg else {}
    name, tag = towers.resolve(init)
    if tag is not None:
        known = get_pretrained_cfg(name, tag)
    else:
        file = towers.config_file(init)
        if file is None:
            with _fetching(str(init)):
                place = download_pretrained_from_hf(
                    name.removeprefix("hf-hub:"), filename=towers.CONFIG_FILE
                )
            file = Path(place)
        known = json.loads(file.read_text(encoding="utf-8")).get("preprocess_cfg", {})
    return {key: list(known[key]) for key in ("mean", "std") if known.get(key) is not None}


def freeze(model: Any, which: Iterable[str]) -> None:
    """Stop towers ("image", "text") from training.

    They stay in eval mode, also through `model.train()`: batch norms keep their statistics and
    dropout stays off, in copies of the model as well.
    """
    which = tuple(which)
    _check_towers(which)
    for name in which:
        tower = model.visual if name == "image" else model.text
        tower.requires_grad_(False)
        tower.train = types.MethodType(_stay_in_eval, tower)
        tower.train()


def stretch_positions(position_ND: Tensor, length: int, kept: int = KEPT_POSITIONS) -> Tensor:
    """Text positions for a context of `length`: stretched after the first `kept`, or cut off."""
    count = len(position_ND)
    if length <= count:
        return position_ND[:length]
    if not 0 <= kept < count - 1:
        raise CapwrightError(
            f"kept_positions is {kept}: 0 to {count - 2}, two less than the {count} positions of "
            "the weights"
        )
    rest_ND = position_ND[kept:].float()
    place_M = torch.arange(length - kept) * (len(rest_ND) / (length - kept))
    below_M = place_M.long().clamp(max=len(rest_ND) - 2)
    part_M1 = (place_M - below_M)[:, None]
    stretched = rest_ND[below_M] + part_M1 * (rest_ND[below_M + 1] - rest_ND[below_M])
    return torch.cat([position_ND[:kept], stretched.to(position_ND.dtype)])


def _stay_in_eval(self: nn.Module, mode: bool = True) -> nn.Module:
    return type(self).train(self, False)


def _check_towers(which: Collection[str]) -> None:
    unknown = [name for name in which if name not in TOWERS]
    if unknown or not which:
        raise CapwrightError(
            f"tower {unknown[0] if unknown else ''!r} is unknown: allowed are 'image' and 'text'"
        )


def _is_file(init: str | Path) -> bool:
    return str(init).endswith(FILES) and not Path(init).is_dir()


def _read(init: str | Path) -> dict[str, Tensor]:
    """Tensors by the names of the source."""
    text = str(init)
    if text.startswith(TIMM):
        return _timm_backbone(text.removeprefix(TIMM))
    if _is_file(init):
        return _file(Path(init))
    name, tag = towers.resolve(init)
    if name.startswith("local-dir:"):
        return _file(_weights_in(Path(name.removeprefix("local-dir:"))))
    with _fetching(text), towers.quiet_open_clip():
        if tag is None:
            path = download_pretrained_from_hf(name.removeprefix("hf-hub:"))
        else:
            path = download_pretrained(get_pretrained_cfg(name, tag))
    return _file(Path(path))


@contextmanager
def _fetching(source: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        raise CapwrightError(
            f"init {source!r} cannot be fetched ({error}): check the name and the connection, or "
            "fetch the weights elsewhere and give their file or folder"
        ) from error


def _weights_in(folder: Path) -> Path:
    preferred = [folder / towers.WEIGHTS_FILE, folder / "open_clip_pytorch_model.bin"]
    others = [p for s in (".safetensors", ".bin", ".pth") for p in sorted(folder.glob(f"*{s}"))]
    for path in (*preferred, *others):
        if path.is_file():
            return path
    raise CapwrightError(
        f"init {str(folder)!r} has no weights: expected {towers.WEIGHTS_FILE} in the folder"
    )


def _file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CapwrightError(
            f"init {str(path)!r} does not exist: expected a file of weights ({', '.join(FILES)})"
        )
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CapwrightError(
            f"init {str(path)!r} holds more than plain weights, which could be code, or is torn: "
            "save its state_dict alone, with torch or safetensors"
        ) from error
    except Exception as error:  # readers of archives raise of every kind
        raise CapwrightError(
            f"init {str(path)!r} cannot be read ({type(error).__name__}: {error}): "
            "fetch it again, or save the state_dict with torch or safetensors"
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        content = {}
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    for prefix in ("module.", "_orig_mod."):
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): v for name, v in tensors.items()}
    return {name: value for name, value in tensors.items() if name not in NOT_WEIGHTS}


def _timm_backbone(name: str) -> dict[str, Tensor]:
    with _fetching(f"{TIMM}{name}"):
        return dict(timm.create_model(name, pretrained=True, num_classes=0).state_dict())


def _renamed(model: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of `model`, whatever form the source has."""
    trunk = getattr(model.visual, "trunk", None)
    if trunk is not None and set(state) & set(trunk.state_dict()):
        classifier = trunk.default_cfg.get("classifier") or ()
        heads = tuple(
            f"{h}." for h in ([classifier] if isinstance(classifier, str) else classifier)
        )
        return {
            f"visual.trunk.{name}": value
            for name, value in state.items()
            if not name.startswith(heads)
        }
    state = convert_state_dict(model, state)
    if hasattr(model, "text"):
        state = convert_to_custom_text_state_dict(state)
    else:
        state = {name.removeprefix("text."): value for name, value in state.items()}
    for name in ("logit_scale", "logit_bias"):  # a number or a list of one
        own = getattr(model, name, None)
        if name in state and own is not None and state[name].numel() == own.numel():
            state[name] = state[name].reshape(own.shape)
    return state


def _resize(
    model: Any, found: dict[str, Tensor], own: Mapping[str, Tensor], kept_positions: int
) -> tuple[str, ...]:
    """Bring positions to the model's size; the names of those that changed."""
    before = {name: value.shape for name, value in found.items()}
    visual = model.visual
    with towers.quiet_open_clip():
        resize_pos_embed(found, model)
    name = "visual.attnpool.positional_embedding"
    if name in found and len(found[name]) != len(own[name]):
        side = round((len(own[name]) - 1) ** 0.5)
        found[name] = resample_abs_pos_embed(found[name][None], [side, side])[0]
    name = "visual.trunk.pos_embed"
    if name in found and found[name].ndim == 3 and found[name].shape[1] != own[name].shape[1]:
        trunk = visual.trunk
        prefix = 0 if getattr(trunk, "no_embed_class", False) else trunk.num_prefix_tokens
        grid = list(trunk.patch_embed.grid_size)
        found[name] = resample_abs_pos_embed(found[name], grid, num_prefix_tokens=prefix)
    name = "text.positional_embedding" if hasattr(model, "text") else "positional_embedding"
    if name in found and len(found[name]) != len(own[name]):
        last = 0 if getattr(getattr(model, "text", None), "cls_emb", None) is None else 1
        words, tail = found[name].tensor_split([len(found[name]) - last])
        words = stretch_positions(words, len(own[name]) - last, kept_positions)
        found[name] = torch.cat([words, tail])
    return tuple(name for name, shape in before.items() if found[name].shape != shape)


def _check_activation(model: nn.Module, init: str | Path) -> None:
    """CapwrightError, before anything is fetched, for weights of the other GELU."""
    if _is_file(init) or str(init).startswith(TIMM):
        return  # they do not say
    name, tag = towers.resolve(init)
    if tag is not None:
        wanted = bool(get_pretrained_cfg(name, tag).get("quick_gelu"))
    else:
        wanted = bool(towers.model_config(init).get("quick_gelu"))
    has = any(isinstance(module, QuickGELU) for module in model.modules())
    plain = any(isinstance(module, nn.GELU) for module in model.modules())
    if has == wanted or not (has or plain):
        return
    names = {True: "QuickGELU", False: "GELU"}
    raise CapwrightError(
        f"init {str(init)!r} was trained with {names[wanted]}, the model has {names[has]}: "
        f"choose the model {'with' if wanted else 'without'} '-quickgelu' in its name "
        f"(quick_gelu: {str(wanted).lower()} in a configuration)"
    )


def _belongs(name: str, only: Collection[str]) -> bool:
    tower = {"visual": "image"}.get(name.partition(".")[0], "text")
    shared = name in ("logit_scale", "logit_bias") or name.startswith("text_decoder.")
    return set(TOWERS) <= set(only) if shared else tower in only


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"
