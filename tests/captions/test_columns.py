from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from capwright.captions.columns import columns_of, each_shard, open_shard, score_stages
from capwright.captions.rules import Rule, evaluate, first_to_drop, load_rules, parse_rule
from capwright.core.errors import CapwrightError
from indexed import write_index, write_scores

UID = "00ff" * 8


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    """Two shards with the same keys, three score stages with other orders, gaps and clashes."""
    samples = [
        {
            "key": "1",
            "text": "alt; DROP TABLE captions",
            "json": f'{{"uid": "{UID}", "nsfw": 0.9}}',
        },
        {"key": "2", "text": "", "json": "no json", "width": 10},
    ]
    work = write_index(tmp_path, {"a": samples, "b": samples[:1]})
    alt, other = ("1", "alt", "alt; DROP TABLE captions"), ("1", "describe-small", "a dog")
    write_scores(work, "score-clip", {
        "a": [(*alt, 0.5), (*other, 0.9), ("2", "human", "it's", 0.1)], "b": [(*alt, 0.25)],
    })  # fmt: skip
    write_scores(work, "score-text", {
        "a": [(*other, 1.0, 3, "en"), (*alt, 0.75, 40, "de"), (*alt, 0.0, 99, "xx")],
        "b": [(*alt, 0.75, 40, "de")],
    }, [("tokens", pa.int32()), ("language", pa.string())])  # fmt: skip
    write_scores(work, "score-my.way", {"a": [], "b": []}, [("tokens", pa.int32())])
    return work


@contextmanager
def opened(work: Path) -> Iterator[Any]:
    with open_shard(work, "a") as connection:
        yield connection


def test_a_row_for_each_candidate_with_all_scores(scored: Path) -> None:
    assert score_stages(scored) == ["score-clip", "score-my.way", "score-text"]
    query = "SELECT shard, key, source, clip, text_score, text_tokens, language, my_way, tokens"
    results = dict(each_shard(scored, f"{query} FROM captions ORDER BY rowid"))
    assert [tuple(row.values()) for row in results["a"].to_pylist()] == [
        ("a", "1", "alt", 0.5, 0.75, 40, "de", None, None),
        ("a", "1", "describe-small", pytest.approx(0.9), 1.0, 3, "en", None, None),
        ("a", "2", "human", pytest.approx(0.1), None, None, None, None, None),
    ]
    assert results["b"].num_rows == 1


def test_pictures_have_uid_and_readable_json(scored: Path) -> None:
    with opened(scored) as connection:
        rows = connection.execute(
            "SELECT uid, CAST(json ->> '$.nsfw' AS DOUBLE) FROM pictures ORDER BY rowid"
        ).fetchall()
        columns = columns_of(connection, "captions")
    assert rows == [(UID, 0.9), ("", None)]
    assert {"alt_text", "width", "uid", "json"} <= set(columns) and "members" not in columns
    assert len(columns) == len(set(columns))


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM '/etc/hostname'",
        "SELECT * FROM glob('/*')",
        "COPY captions TO '/tmp/captions.csv'",
        "ATTACH '/tmp/other.db'",
        "INSTALL httpfs",
        "SELECT * FROM outside",
        "SET enable_external_access = true",
        "SET python_enable_replacements = true",
    ],
)
def test_the_connection_reaches_nothing_outside(scored: Path, query: str) -> None:
    outside = pa.table({"secret": [1]})
    with opened(scored) as connection, pytest.raises(duckdb.Error):
        connection.execute(query)
    assert outside.num_rows == 1


def test_the_first_rule_counts_and_null_drops_nothing(scored: Path) -> None:
    rules = [
        Rule(name="long", drop="tokens > 5 OR text_tokens > 5  -- a comment"),
        Rule(name="weak", drop="clip < max(clip) OVER (PARTITION BY key)"),
        Rule(name="small", drop="width < 20", scope="picture"),
    ]
    with opened(scored) as connection:
        assert first_to_drop(connection, rules, "caption") == ["long", "", ""]
        assert first_to_drop(connection, rules[1:], "caption") == ["weak", "", ""]
        assert first_to_drop(connection, rules, "picture") == ["", "small"]


@pytest.mark.parametrize(
    ("drop", "reason"),
    [
        ("clipp < 1", 'Binder Error: Referenced column "clipp" not found in FROM clause'),
        ("clip < ", 'Parser Error: syntax error at or near ")"'),
        ("clip", "it is FLOAT and not one BOOLEAN a row"),
        ("CAST(source AS INT) = 1", "Conversion Error: Could not convert string 'alt' to INT32"),
        ("true), (false", "it is BOOLEAN, BOOLEAN and not one BOOLEAN a row"),
        ("clip < 1) AS value FROM captions WHERE (clip < 0.5", "Parser Error: syntax error"),
        ("unnest([true, false])", "it is BOOLEAN and not one BOOLEAN a row"),
        ("tokens > (SELECT 1 FROM nothing)", "Catalog Error: Table with name nothing"),
    ],
)
def test_a_wrong_rule_is_named_with_reason_and_columns(
    scored: Path, drop: str, reason: str
) -> None:
    rule = Rule(name="odd", drop=drop)
    with opened(scored) as connection, pytest.raises(CapwrightError) as error:
        first_to_drop(connection, [rule], "caption")
    text = str(error.value)
    assert text.startswith("rule 'odd' cannot be used (") and "\n" not in text
    assert reason in text
    assert "its columns are shard, key, source, text, clip, " in text


def test_a_second_statement_is_refused(scored: Path) -> None:
    with opened(scored) as connection:
        with pytest.raises(CapwrightError, match="rule has more than one SQL statement"):
            evaluate(connection, "captions", "true FROM captions; SELECT 1", "rule", "BOOLEAN")
        assert columns_of(connection, "captions")


def test_rules_of_a_file_and_of_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "my_rules.py"
    path.write_text(
        "from capwright.captions.rules import Rule\n"
        "def rules():\n    return [Rule(name='junk', drop='junk > 0.5')]\n"
    )
    assert load_rules(path) == (parse_rule("junk: junk > 0.5"),)
    assert parse_rule("t: text = 'a: b'", "picture").drop == "text = 'a: b'"
    path.write_text("rules = 3\n")
    with pytest.raises(CapwrightError, match=r"my_rules.py has no function rules\(\)"):
        load_rules(path)
    with pytest.raises(CapwrightError, match="are not a file: give the path"):
        load_rules(tmp_path / "none.py")
    with pytest.raises(CapwrightError, match=r"rule 'junk > 0.5' has no name: write name: cond"):
        parse_rule("junk > 0.5")
    with pytest.raises(CapwrightError, match="rule 'a' with the condition '' is not whole"):
        parse_rule("a:")
    with pytest.raises(CapwrightError, match="scope 'shard', but must be for a caption"):
        Rule(name="a", drop="true", scope="shard")  # type: ignore[arg-type]
