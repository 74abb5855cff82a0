"""From what a corpus holds to what will go wrong with it.

Reads the first names in a tar, and writes nothing. Each sentence says what, how much of it, and
what to do. Problems are what makes a training hang or lose samples without a word: with fewer tars
than loading workers the others wait for ever, what follows the break in a tar is gone, and samples
without a picture or a text are filtered in silence by the usual loaders.
"""

import tarfile

import fsspec

from capwright.captions.doctor_report import (
    SMALL_SIDE,
    Report,
    bytes_text,
    part_text,
    reasons_text,
)

BROKEN, BARE, CUT, SAME, NEAR, SAME_TEXT = 0.05, 0.05, 0.05, 0.01, 0.05, 0.1
OTHER_LANGUAGES, SMALL = 0.2, 0.05
ROW_GROUP_BYTES = 64 << 20  # read for one picture
UNKNOWN_TO_LOADERS = ("gif", "bmp", "tif", "tiff")  # open_clip takes jpg, jpeg, png and webp
NO_PICTURE, BROKEN_TAR = "no picture in the sample", "broken tar"


def judge(
    report: Report, *, workers: int, stopped: str, first_shard: str
) -> tuple[list[str], list[str]]:
    """(problems, warnings); `workers` is over all ranks, `stopped` why indexing ended early."""
    problems = [stopped] if stopped else []
    warnings: list[str] = []
    total = report.samples + sum(report.left_out.values())
    _judge_shards(report, workers, problems, warnings)
    _judge_samples(report, total, first_shard, problems, warnings)
    if report.samples:
        _judge_texts(report, problems, warnings)
        _judge_pictures(report, warnings)
    return problems, warnings


def _judge_shards(report: Report, workers: int, problems: list[str], warnings: list[str]) -> None:
    shards = report.files
    sharded = report.format in ("webdataset", "tables", "huggingface")
    if sharded and shards < workers:
        sentence = (
            f"{shards} shards for {workers} loading workers (workers x ranks): a loader that gives "
            f"each worker its own shards hangs or leaves some idle; use at most {shards} workers "
            "or write smaller shards"
        )
        (problems if report.format == "webdataset" else warnings).append(sentence)
    elif report.format == "webdataset" and shards % workers:
        warnings.append(
            f"{shards} shards do not divide evenly among {workers} loading workers: some end their "
            "epoch earlier; a multiple is better"
        )
    cut_tars = sum(n for reason, n in report.left_out.items() if reason.startswith(BROKEN_TAR))
    if cut_tars:
        problems.append(
            f"{cut_tars} tars end in the middle: what came after the break is lost without a word; "
            "fetch them again"
        )
    counted = report.img2dataset
    if counted:
        missing = counted["successes"] - counted["pictures"] - sum(report.left_out.values())
        if missing > 0:
            many = missing > BROKEN * counted["successes"]
            (problems if many else warnings).append(
                f"img2dataset counted {counted['successes']:,} pictures, but {missing:,} of them "
                "are not in the tars: fetch these shards again"
            )
        if counted["shards"] < shards:
            warnings.append(
                f"{shards - counted['shards']} of {shards} shards have no _stats.json: img2dataset "
                "writes it when a shard is complete, so these may not be"
            )


def _judge_samples(
    report: Report, total: int, first_shard: str, problems: list[str], warnings: list[str]
) -> None:
    lost = report.left_out.get(NO_PICTURE, 0)
    bare = report.samples - report.with_text
    broken = sum(report.left_out.values())
    if total and lost > BARE * total and (bare > BARE * total or not report.samples):
        problems.append(
            f"{lost:,} samples have no picture and {bare:,} pictures have no text, since their "
            f"names never join ({_first_names(first_shard)}): picture and text of a sample need "
            "the same name up to the first dot, such as 000001.jpg and 000001.txt"
        )
    elif broken > BROKEN * total:
        problems.append(f"{part_text(broken, total)} samples are broken ({reasons_text(report)})")
    elif broken:
        warnings.append(
            f"{part_text(broken, total)} samples are broken and left out ({reasons_text(report)})"
        )
    if not report.samples and not problems:
        problems.append("there are no samples")
    if report.dotted_keys:
        problems.append(
            f"{report.dotted_keys:,} samples have a dot in their name: Capwright reads them, but "
            "loaders that end the name at the first dot (webdataset, open_clip) drop them; rename "
            "the members"
        )
    odd = sum(report.members.get(suffix, 0) for suffix in UNKNOWN_TO_LOADERS)
    if odd:
        warnings.append(
            f"{odd:,} members are {'|'.join(UNKNOWN_TO_LOADERS)}: Capwright reads them, but "
            "open_clip takes jpg, jpeg, png and webp alone and drops the others"
        )


def _judge_texts(report: Report, problems: list[str], warnings: list[str]) -> None:
    bare = report.samples - report.with_text
    if not report.with_text:
        problems.append(
            "no sample has a text: name the column or suffix with `capwright index --column "
            "text=NAME` or --text-suffix, or describe the pictures first"
        )
        return
    if bare:
        warnings.append(
            f"{part_text(bare, report.samples)} samples have no text: loaders drop them until "
            "`capwright describe` has given them captions"
        )
    if report.cut_at_77 > CUT:
        warnings.append(
            f"{report.cut_at_77:.1%} of the texts are longer than CLIP's 77 tokens: training never "
            "sees their ends"
        )
    if report.same_texts > SAME_TEXT * report.with_text:
        warnings.append(
            f"{part_text(report.same_texts, report.with_text)} texts repeat another's, "
            f"{report.most_frequent_text[:60]!r} {report.most_frequent_text_count:,} times: equal "
            "texts in a batch are false negatives; `capwright select` drops them"
        )
    english = report.languages.get("en", 0.0)
    if report.languages and 1 - english > OTHER_LANGUAGES:
        first = next(name for name in report.languages if name != "en")
        warnings.append(
            f"{1 - english:.0%} of the texts are not English, most of them {first}: CLIP's "
            "tokenizer spends many tokens on them; choose a multilingual text tower or select by "
            "language"
        )


def _judge_pictures(report: Report, warnings: list[str]) -> None:
    if report.same_pictures > SAME * report.samples:
        warnings.append(
            f"{part_text(report.same_pictures, report.samples)} samples repeat another's picture "
            "byte for byte: `capwright select` drops them"
        )
    if report.near_pictures > NEAR * report.samples:
        warnings.append(
            f"{part_text(report.near_pictures, report.samples)} pictures look like another one: "
            "`capwright select` drops near duplicates"
        )
    if report.small > SMALL * report.samples:
        warnings.append(
            f"{part_text(report.small, report.samples)} pictures have a side under {SMALL_SIDE} "
            "pixels: they are enlarged to the size of the training"
        )
    group = report.row_group_rows * report.picture_bytes.mean
    if group > ROW_GROUP_BYTES:
        warnings.append(
            f"a row group holds {report.row_group_rows:,} pictures ({bytes_text(group)}), all of "
            "which are read for any of them: random access will be slow; write the files again "
            "with row_group_size=100"
        )


def _first_names(address: str) -> str:
    """The first names in a tar, as an example."""
    names: list[str] = []
    try:
        with fsspec.open(address, "rb") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                if member.isfile():
                    names.append(member.name)
                if len(names) == 4:
                    break
    except (tarfile.TarError, OSError):
        pass
    return "for example " + ", ".join(names)
