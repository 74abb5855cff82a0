"""The few captions by people that a corpus may hold, from a field of each sample's `.json`."""

import json

import pyarrow as pa


def human_captions(index: pa.Table, human_field: str) -> list[str]:
    """Each picture's caption by a person, "" where it has none, no field is named, or the json
    cannot be read.
    """
    if not human_field:
        return [""] * index.num_rows
    keys = (json.dumps(human_field), json.dumps(human_field, ensure_ascii=False))
    found = []
    for text in index["json"].to_pylist():
        # most samples have none, and looking for the name is much quicker than parsing
        may_have = text and any(key in text for key in keys)
        value = _field(text, human_field) if may_have else None
        found.append(value.strip() if isinstance(value, str) else "")
    return found


def _field(text: str, name: str) -> object:
    try:
        sample = json.loads(text)
    except ValueError:
        return None
    return sample.get(name) if isinstance(sample, dict) else None
