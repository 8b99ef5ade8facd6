"""File names of a batch: filled in, unique, and refused where they are not."""

from __future__ import annotations

import pytest
from airflow.sdk import ObjectStoragePath

from kie_provider.batch.names import existing_names, fill_in, read_names, slug
from tests.support.messages import assert_tells

DEFAULT = "{kie_task_id}-{index}.{extension}"


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red fox, at dawn!", "a-red-fox-at-dawn"),
        ("  ../../etc/passwd ", "etc-passwd"),
        ("{kie_task_id}_x", "kie-task-id-x"),
        ("красная лиса", "красная-лиса"),
        ("...", "image"),
        (None, "none"),
        ("word " * 50, "word-word-word-word-word-word-word-word"),
    ],
)
def test_slugs(prompt, name):
    assert slug(prompt) == name


@pytest.mark.parametrize("own", [None, "", "None", float("nan")])
def test_a_blank_name_is_the_default(own):
    assert read_names([(own, "a fox")], DEFAULT) == ([DEFAULT], [])


def test_fields_of_the_item_are_filled_in_and_the_others_left():
    assert fill_in("{{x}}/{item:03}-{index:2}-{extension}", {"item": 7}) == "{{x}}/007-{index:2}-{extension}"
    patterns, problems = read_names([(None, "a fox"), ("own.{extension}", "b")], "{item}-{prompt_slug}.{extension}")
    assert (patterns, problems) == (["0-a-fox.{extension}", "own.{extension}"], [])


@pytest.mark.parametrize(
    ("names", "default", "place", "name"),
    [
        (["a.{extension}", "b.{extension}", "a.{extension}"], DEFAULT, 2, "a.png"),
        (["a-0.{extension}", "a-{index}.{extension}"], DEFAULT, 1, "a-0.png"),
        ([None, "1.{extension}"], "{item}.{extension}", None, ""),
        (["1.{extension}", None], "{item}.{extension}", 1, "1.png"),
        ([None, None], "x.{extension}", 1, "x.png"),
        ([None, None], "{kie_task_id}.{extension}", None, ""),
        (["{{kie_task_id}}.{extension}"] * 2, DEFAULT, 1, "{kie_task_id}.png"),
    ],
)
def test_names_that_meet(names, default, place, name):
    _, problems = read_names([(each, "a fox") for each in names], default)

    assert len(problems) == (0 if place is None else 1)
    assert place is None or problems[0].startswith(
        f"prompts[{place}].file_name: would be {name!r}, like that of prompts[0]"
    )


def test_a_wrong_default_is_named_once():
    _, problems = read_names([(None, "a"), (None, "b")], "x.png")
    [problem] = problems
    assert_tells(problem, "file_name: ", "'.{extension}'", "'x.png'")


def test_names_that_are_there(tmp_path):
    (tmp_path / "birds").mkdir()
    for name in ("birds/owl.webp", "fox.txt", "hare.png"):
        (tmp_path / name).touch()
    folder = ObjectStoragePath(f"file://{tmp_path}")

    patterns = ["birds/owl.{extension}", "fox.{extension}", "hare.{extension}", "no/such.{extension}", DEFAULT]

    assert sorted(existing_names(folder, patterns)) == ["birds/owl.webp", "hare.png"]
