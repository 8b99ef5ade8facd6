"""Whatever pattern is accepted, and whatever id Kie gives, a file stays below the target."""

from pathlib import PurePosixPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kie_provider.files.naming import file_name, pattern_problem, sidecar_name
from kie_provider.operators.results import DEFAULT_FILE_NAME

PIECES = st.sampled_from(
    [
        "{kie_task_id}",
        "{index}",
        "{index:03}",
        "{extension}",
        "/",
        "..",
        ".",
        "a",
        " ",
        "~",
        "\\",
        "\0",
        "{",
        "}",
        "{{",
        "}}",
    ]
)
PATTERNS = st.lists(PIECES | st.text(max_size=5), max_size=8).map(lambda pieces: "".join(pieces) + ".{extension}")


@given(pattern=PATTERNS, kie_task_id=st.text(min_size=1), index=st.integers(0, 999))
@example(pattern="{kie_task_id}/{index}.{extension}", kie_task_id="..", index=0)
@example(pattern="{kie_task_id}.{extension}", kie_task_id="/etc/passwd", index=0)
def test_no_name_leads_elsewhere(pattern, kie_task_id, index):
    if pattern_problem(pattern) is not None:
        return
    name = PurePosixPath(file_name(pattern, kie_task_id, index, "png"))
    assert not name.is_absolute()
    assert ".." not in name.parts
    assert (PurePosixPath("/target") / name).is_relative_to("/target")
    assert name.suffix == ".png"
    assert sidecar_name(pattern, kie_task_id, index) == str(file_name(pattern, kie_task_id, index, "json"))


@pytest.mark.parametrize(
    "pattern",
    [
        DEFAULT_FILE_NAME,
        "cover.{extension}",
        "a/b c/{kie_task_id}_{index:02}.{extension}",
        "{{x}}.{extension}",
        "ä.{extension}",
    ],
)
def test_what_is_fine(pattern):
    assert pattern_problem(pattern) is None


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("{index:>5}.{extension}", "index cannot have ':>5'; only numbers can have a width: {index:03}"),
        ("{index!r}.{extension}", "index cannot have '!r'; only numbers can have a width: {index:03}"),
        ("{kie_task_id:9}.{extension}", "kie_task_id cannot have ':9'; only numbers can have a width: {index:03}"),
        ("{item}.{extension}", "has a field 'item' that is not one of kie_task_id, index, extension"),
        ("\u202egpj.{extension}", "has a control character or line break ('\\u202e')"),
    ],
)
def test_what_is_wrong_is_named(pattern, problem):
    assert pattern_problem(pattern).endswith(problem)


def test_what_the_default_gives():
    assert file_name(DEFAULT_FILE_NAME, "0a1b", 0, "png") == "0a1b-0.png"
    assert sidecar_name(DEFAULT_FILE_NAME, "0a1b", 0) == "0a1b-0.json"
