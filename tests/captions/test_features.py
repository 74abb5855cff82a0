from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from capwright.captions import features
from capwright.captions.features import FeaturesConfig
from capwright.captions.maps import load_maps, pool_cells, repeat_cells
from capwright.core.errors import CapwrightError
from capwright.corpus.index import index_shards, load_index


def test_one_record_a_picture_with_both_maps(featured: Path) -> None:
    table = load_index(featured)
    records = features.load_features(featured)
    assert len(records) == table.num_rows
    assert records["middle"].shape[1:] == (112, 4, 4)
    assert records["deep"].shape[1:] == (320, 2, 2)
    assert records["valid"].all()
    assert np.abs(records["deep"]).max() > 0.5


def test_a_missing_shard_alone_is_computed_again_to_the_same_bytes(work: Path) -> None:
    config = FeaturesConfig(work=work, picture_size=64)
    path = features.features_folder(work) / "00001.npy"
    before = path.read_bytes()
    path.unlink()
    summary = features.run(config)
    assert summary.computed == 24
    assert path.read_bytes() == before


def test_another_size_is_refused(work: Path) -> None:
    with pytest.raises(CapwrightError, match=r"another plan .*picture_size 64 -> 96"):
        features.run(FeaturesConfig(work=work, picture_size=96))


def test_what_cannot_be_decoded_is_counted_and_marked(work: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    file = work / "index" / "00000.parquet"
    table = pq.read_table(file)
    broken = [7, *table["image_size"].to_pylist()[1:]]
    column = table.schema.get_field_index("image_size")
    pq.write_table(table.set_column(column, "image_size", pa.array(broken, pa.int64())), file)
    (features.features_folder(work) / "00000.npy").unlink()
    summary = features.run(FeaturesConfig(work=work, picture_size=64, max_failure_rate=0.1))
    assert sum(summary.failures.values()) == 1
    records = features.load_shard(work, "00000")
    assert not records["valid"][0] and not records["deep"][0].any()
    assert records["valid"][1:].all()


def test_errors_say_what_to_do(work: Path) -> None:
    with pytest.raises(CapwrightError, match=r"picture_size is 100, .* multiple of 32 .*: try 128"):
        FeaturesConfig(work=work, picture_size=100)
    with pytest.raises(CapwrightError, match=r"no feature maps for shard 9 .*capwright describe"):
        features.load_shard(work, "9")


def test_pooling_undoes_repeating(featured: Path) -> None:
    records = features.load_shard(featured, "00000")
    deep_BMC = load_maps(records, np.array([3, 5])).deep_BMC
    torch.testing.assert_close(pool_cells(repeat_cells(deep_BMC, 16), 4), deep_BMC)


def test_deep_cells_are_repeated_in_place(featured: Path) -> None:
    records = features.load_shard(featured, index_shards(featured)[0])
    maps = load_maps(records, np.array([3]))
    repeated = repeat_cells(maps.deep_BMC, 16)[0].reshape(4, 4, 320)
    expected = maps.deep_BMC[0].reshape(2, 2, 320)
    for row in range(4):
        for column in range(4):
            assert repeated[row, column].equal(expected[row // 2, column // 2])
