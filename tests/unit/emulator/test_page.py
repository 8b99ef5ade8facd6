"""The page for people."""

from __future__ import annotations

from kie_provider.emulator.page import render

TASK = {
    "taskId": "ab" * 16,
    "model": "flux-2/pro-text-to-image",
    "prompt": "a fox",
    "state": "success",
    "credits": 5.0,
    "created_at": "2026-09-11T11:38:14.500Z",
}


def page(*tasks) -> str:
    return render({"credits_start": 100.0, "credits_left": 88.5, "charged_total": 11.5, "tasks": list(tasks)})


def test_it_shows_balance_and_tasks_newest_first():
    html = page(TASK, TASK | {"prompt": "a bear", "state": "generating"})
    assert "11.5 credits charged, 88.5 left" in html
    assert html.index("a bear") < html.index("a fox")
    assert html.count(f'src="/_emulator/thumbnail/{TASK["taskId"]}"') == 1  # only the one that has ended


def test_prompts_are_escaped():
    html = page(TASK | {"prompt": "<script>alert(1)</script> \ud83e"})
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    html.encode()  # half a surrogate pair does not break the answer


def test_a_text_result_has_no_thumbnail():
    assert "<img" not in page(TASK | {"model": "elevenlabs/speech-to-text", "prompt": ""})


def test_nothing_comes_from_elsewhere():
    assert "http" not in page(TASK).replace('http-equiv="refresh"', "")


def test_empty():
    assert "No task yet" in page()
