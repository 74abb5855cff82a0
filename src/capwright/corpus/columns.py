"""The column map: which column of a table is the picture, which the alt text, which the key.

Columns are found by the names that are common in the wild, upper or lower case, the first of each
list below that the table has; `ReadOptions.columns` overrides. What lies in the picture column is
bytes, a struct of bytes and path as Hugging Face `datasets` writes it, or a path; bytes come
before paths, since a file name beside them only says where they came from. Texts that models wrote
(`re_caption`, `capsfusion`, `syn_text`) are the alt text only where there is no other. All columns
that are left go to the index's `json`, if they hold plain values or lists of strings.

Names: img2dataset (`url`, `caption`, `key`), LAION (`URL`, `TEXT`), open_clip (`filepath`,
`title`), CapsFusion (`image_url`, `laion_2b`, `laion_coco`, `capsfusion`), Recap-DataComp
(`org_caption`, `re_caption`), DataComp (`uid`), DataCompDR (`syn_text`).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from capwright.core.errors import CapwrightError

PICTURE_NAMES = (
    "filepath", "image_path", "img_path", "file_path", "picture_path", "path", "file_name",
    "filename", "image_file", "image", "img", "picture", "jpg", "jpeg", "png", "webp",
    "image_bytes", "bytes",
)  # fmt: skip
TEXT_NAMES = (
    "caption", "text", "title", "txt", "alt_text", "alttext", "alt", "org_caption", "raw_caption",
    "laion_2b", "captions", "texts", "description", "re_caption", "capsfusion", "laion_coco",
    "syn_text",
)  # fmt: skip
KEY_NAMES = ("key", "uid", "id")
URL_NAMES = ("url", "image_url", "img_url")

Kind = Literal["string", "strings", "value", "bytes", "picture", "other"]
"""What a column holds; `picture` is a struct with a field `bytes` or `path`."""


@dataclass(frozen=True, kw_only=True)
class ColumnMap:
    """The columns of one table by what they are for."""

    picture: str
    """Bytes, struct or path."""
    kind: Kind
    """What the picture column holds: bytes, picture or string."""
    text: str | None
    """None: the table has no texts."""
    key: str | None
    """None: the row number is the key."""
    rest: tuple[str, ...]
    """Columns that go to the index's `json`."""

    @property
    def wanted(self) -> list[str]:
        """The columns that have to be read."""
        ours = [self.picture, self.text, self.key, *self.rest]
        return list(dict.fromkeys(name for name in ours if name is not None))


def find_columns(
    kinds: Mapping[str, Kind], chosen: Mapping[str, str], where: str, image_feature: str = ""
) -> ColumnMap:
    """Map the columns of the table at `where`; `chosen` is `ReadOptions.columns`.

    `image_feature` is the column that the file itself declares to hold pictures. Raises
    CapwrightError where a chosen column is missing or no column holds pictures.
    """
    picture = _chosen(kinds, chosen, "picture", where) or _find_picture(kinds, image_feature)
    if picture is None:
        raise CapwrightError(_no_picture(kinds, where))
    if kinds[picture] not in ("bytes", "picture", "string"):
        raise CapwrightError(
            f"the column {picture!r} of {where} holds neither bytes nor paths of pictures: "
            "name another one with --column picture=NAME"
        )
    text = _chosen(kinds, chosen, "text", where) or _first(
        kinds, TEXT_NAMES, ("string", "strings"), besides=picture
    )
    key = _chosen(kinds, chosen, "key", where)
    if key is None and "key" not in chosen:
        key = _first(kinds, KEY_NAMES, ("string", "value"), besides=picture)
    rest = [name for name, kind in kinds.items() if kind in ("string", "strings", "value")]
    return ColumnMap(
        picture=picture,
        kind=kinds[picture],
        text=text,
        key=key,
        rest=tuple(name for name in rest if name not in (picture, text, key)),
    )


def schema_kinds(schema: pa.Schema) -> dict[str, Kind]:
    """What each column of an Arrow schema holds."""
    return {field.name: _kind(field.type) for field in schema}


def image_feature(schema: pa.Schema) -> str:
    """The first column that Hugging Face `datasets` marked as Image, or ""."""
    note = (schema.metadata or {}).get(b"huggingface")
    if note is None:
        return ""
    features = (json.loads(note).get("info") or {}).get("features") or {}
    for name, feature in features.items():
        if isinstance(feature, dict) and feature.get("_type") == "Image":
            return str(name)
    return ""


def alt_texts(value: Any) -> list[str]:
    """The texts in a cell: a string, a list of strings, or a string that is a JSON list of them."""
    if value is None:
        return []
    if isinstance(value, str):
        text = value.replace("\x00", "").strip()
        if text.startswith("["):
            try:
                listed = json.loads(text)
            except ValueError:
                listed = None
            if isinstance(listed, list) and all(isinstance(item, str) for item in listed):
                return alt_texts(listed)
        return [text] if text else []
    stripped = [item.replace("\x00", "").strip() for item in value if isinstance(item, str)]
    return [text for text in stripped if text]


def texts_in(values: Mapping[str, Any], chosen: Mapping[str, str]) -> list[str]:
    """The alt texts among the named values of one sample, such as its JSON file's."""
    lowered = {name.lower(): values[name] for name in reversed(list(values))}
    wanted = chosen.get("text", "").lower()
    for name in [wanted] if wanted else TEXT_NAMES:
        value = lowered.get(name)
        texts = alt_texts(value) if isinstance(value, str | list) else []
        if texts:
            return texts
    return []


def json_text(values: Mapping[str, Any]) -> str:
    """Values that are there, as a JSON object; "" where there are none."""
    kept = {name: _plain(value) for name, value in values.items()}
    kept = {name: value for name, value in kept.items() if value not in (None, "", [])}
    return json.dumps(kept, ensure_ascii=False, default=str) if kept else ""


def text_row(columns: ColumnMap, values: Mapping[str, Any], number: int) -> dict[str, Any] | None:
    """The index's key, text, more_texts and json of row `number`; None where its key is empty."""
    key = f"{number:09d}"
    if columns.key is not None:
        value = values[columns.key]
        key = "" if value is None else str(value).strip()
        if not key:
            return None
    texts = alt_texts(values[columns.text]) if columns.text is not None else []
    return {
        "key": key,
        "text": texts[0] if texts else "",
        "more_texts": texts[1:],
        "json": json_text({name: values[name] for name in columns.rest}),
        "members": [],
    }


def _plain(value: Any) -> Any:
    # NaN is how pandas writes an empty cell, and is no JSON
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _chosen(
    kinds: Mapping[str, Kind], chosen: Mapping[str, str], ours: str, where: str
) -> str | None:
    name = chosen.get(ours, "")
    if not name:
        return None
    found = name if name in kinds else name.partition(".")[0]
    if found not in kinds:
        raise CapwrightError(
            f"the column {name!r} is not in {where}: it has {_listed(kinds)}, "
            f"so write --column {ours}=ONE OF THEM"
        )
    return found


def _find_picture(kinds: Mapping[str, Kind], declared: str) -> str | None:
    if kinds.get(declared) in ("bytes", "picture"):
        return declared
    stored: tuple[Kind, ...] = ("bytes", "picture")
    return (
        _first(kinds, PICTURE_NAMES, stored)
        or next((name for name, kind in kinds.items() if kind == "picture"), None)
        or _first(kinds, PICTURE_NAMES, ("string",))
    )


def _first(
    kinds: Mapping[str, Kind], names: Sequence[str], allowed: Sequence[Kind], besides: str = ""
) -> str | None:
    lowered: dict[str, str] = {}
    for name, kind in kinds.items():
        if kind in allowed and name != besides:
            lowered.setdefault(name.lower(), name)
    return next((lowered[name] for name in names if name in lowered), None)


def _no_picture(kinds: Mapping[str, Kind], where: str) -> str:
    url = _first(kinds, URL_NAMES, ("string",))
    if url is not None:
        return (
            f"{where} has addresses in the web ({url!r}) but no pictures: "
            "fetch them first, for example with img2dataset, and index what it writes"
        )
    return (
        f"{where} has no column of pictures among {_listed(kinds)}: "
        "name the one with paths or bytes by --column picture=NAME"
    )


def _listed(kinds: Mapping[str, Kind]) -> str:
    names = list(kinds)
    return ", ".join(repr(name) for name in names[:12]) + (", …" if len(names) > 12 else "")


def _kind(data_type: Any) -> Kind:
    if pa.types.is_dictionary(data_type):
        data_type = data_type.value_type
    if pa.types.is_string(data_type) or pa.types.is_large_string(data_type):
        return "string"
    if pa.types.is_binary(data_type) or pa.types.is_large_binary(data_type):
        return "bytes"
    if pa.types.is_list(data_type) or pa.types.is_large_list(data_type):
        return "strings" if _kind(data_type.value_type) == "string" else "other"
    if pa.types.is_struct(data_type):
        fields = {field.name: _kind(field.type) for field in data_type}
        is_picture = fields.get("bytes") == "bytes" or fields.get("path") == "string"
        return "picture" if is_picture else "other"
    if pa.types.is_primitive(data_type) or pa.types.is_decimal(data_type):
        return "value"
    return "other"
