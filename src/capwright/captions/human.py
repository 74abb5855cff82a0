"""The few captions by people that a corpus may hold, from a field of each sample's `.json`."""

import json

import pyarrow as pa


def human_captions(index: pa.Table, human_field: str) -> list[str]:
    """Each picture's caption by a person, "" where it has none or no field is named."""
    found = []
    for text in index["json"].to_pylist():
        sample = json.loads(text) if human_field and text else {}
        value = sample.get(human_field) if isinstance(sample, dict) else None
        found.append(value.strip() if isinstance(value, str) else "")
    return found
