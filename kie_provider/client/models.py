"""What goes to Kie.ai and what comes back, parsed once: :class:`Flux2Input` and :class:`TaskRecord`."""

from __future__ import annotations

import ast
import contextlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from enum import Enum
from typing import Any

import pendulum

from kie_provider.client.errors import KieValidationError, one_line, storable
from kie_provider.client.results import decoded, result_forms, result_object, result_urls
from kie_provider.client.results import is_http_url as is_http_url  # noqa: PLC0414  # it is looked for here
from kie_provider.client.wording import counted

#: Flux-2 model id -> whether it takes images.
FLUX2_MODELS: Mapping[str, bool] = {
    "flux-2/pro-text-to-image": False,
    "flux-2/flex-text-to-image": False,
    "flux-2/pro-image-to-image": True,
    "flux-2/flex-image-to-image": True,
}
#: What these stand for depends on whether there are input images.
FLUX2_TIERS = ("flux-2/pro", "flux-2/flex")
FLUX2_ASPECT_RATIOS = ("1:1", "4:3", "3:4", "16:9", "9:16", "3:2", "2:3")
#: Takes the ratio of the first input image, so only image-to-image models know it.
FLUX2_ASPECT_RATIO_AUTO = "auto"
FLUX2_RESOLUTIONS = ("1K", "2K")
FLUX2_PROMPT_LENGTH = (3, 5000)
FLUX2_MAX_INPUT_URLS = 8


class TaskState(str, Enum):
    """State of a Kie task; what is neither success nor fail counts as running (new states included)."""

    RUNNING = "running"
    SUCCESS = "success"
    FAIL = "fail"


@dataclass(frozen=True)
class TaskRecord:
    """What recordInfo says of one task.

    Kie sends fields late, as null, as "", double-encoded or not at all; all of that ends here.
    """

    kie_task_id: str
    state: TaskState
    #: Kie's own word: ``waiting``, ``queuing``, ``generating``, ``success``, ``fail``, or one yet unknown.
    kie_state: str
    model: str | None = None
    input: Mapping[str, Any] = field(default_factory=dict)
    #: Where Kie was told to call back.
    callback_url: str | None = None
    #: http(s) URLs of the results; they can expire within 24 hours.
    urls: tuple[str, ...] = ()
    #: What the model made, if that is more than URLs: the ``resultObject`` of text models, else its own structure.
    result: Any = None
    fail_code: str | None = None
    fail_message: str | None = None
    #: Credits held while running, charged on success.
    credits_consumed: float | None = None
    #: Whole seconds. The vendor's page says milliseconds; recorded answers show seconds.
    cost_seconds: int | None = None
    created_at: datetime | None = None
    completed_at: datetime | None = None

    @property
    def has_result(self) -> bool:
        """Whether there is something to use; a success without it is none."""
        return bool(self.urls) or self.result is not None

    @classmethod
    def from_data(cls, data: Mapping[str, Any], kie_task_id: str) -> TaskRecord:
        """Parse the ``data`` object of a recordInfo answer.

        :param data: the object, in any of the shapes Kie is known to send.
        :param kie_task_id: the id that was asked for; that is the one that counts.
        """
        word = _text(data.get("state")) or _text(data.get("status"))
        kie_state = word or _STATE_BY_SUCCESS_FLAG.get(_number(data.get("successFlag")), "unknown")
        forms = result_forms(data)
        return cls(
            kie_task_id=kie_task_id,
            state=_STATES.get(kie_state.lower(), TaskState.RUNNING),
            kie_state=kie_state,
            model=_text(data.get("model")),
            input=_object(_param(data).get("input")),
            callback_url=_text(_param(data).get("callBackUrl")),
            urls=tuple(result_urls(forms)),
            result=result_object(forms),
            fail_code=_text(data.get("failCode")),
            fail_message=_text(data.get("failMsg")),
            credits_consumed=_number(data.get("creditsConsumed")),
            cost_seconds=None if (cost := _number(data.get("costTime"))) is None else int(cost),
            created_at=_time(data.get("createTime")),
            completed_at=_time(data.get("completeTime")),
        )

    def to_result(self) -> dict[str, Any]:
        """Return the result dict that operators and sensors push to XCom: JSON, times as ISO 8601 in UTC."""
        result = {
            "kie_task_id": self.kie_task_id,
            "model": self.model,
            "state": self.state.value,
            "urls": list(self.urls),
            "result": self.result,
            "credits_consumed": self.credits_consumed,
            "cost_seconds": self.cost_seconds,
            "created_at": self.created_at and pendulum.instance(self.created_at).to_iso8601_string(),
            "completed_at": self.completed_at and pendulum.instance(self.completed_at).to_iso8601_string(),
            "input": dict(self.input),
        }
        return dict(storable(result))


#: Kie's words for tasks that have not ended; any other unknown word counts as one, too.
RUNNING_WORDS = ("waiting", "queuing", "generating")
# Beside Kie's own two, what clients have met at models that came from other endpoints of Kie's.
_STATES = {
    **dict.fromkeys(("success", "succeeded", "succeed", "completed", "complete", "finished"), TaskState.SUCCESS),
    **dict.fromkeys(("fail", "failed", "failure", "error"), TaskState.FAIL),
    **dict.fromkeys(("canceled", "cancelled", "rejected", "expired", "aborted"), TaskState.FAIL),
    **dict.fromkeys(("create_task_failed", "generate_audio_failed", "sensitive_word_error"), TaskState.FAIL),
}
# Newer answers carry successFlag beside state; it only decides when state is missing.
_STATE_BY_SUCCESS_FLAG: Mapping[float | None, str] = {0: "generating", 1: "success", 2: "fail", 3: "fail"}


_SCALARS = (str, int, float)


def _text(value: Any) -> str | None:
    """Return a non-empty string, or None; numbers (codes) become text."""
    if isinstance(value, bool) or not isinstance(value, _SCALARS):
        return None
    return one_line(str(value)) or None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, _SCALARS):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) < 1e15 else None  # neither nan nor inf nor nonsense


def _time(milliseconds: Any) -> datetime | None:
    number = _number(milliseconds)
    if not number or not 0 < number < 4e12:  # the year 2096: later is not a time
        return None
    # Not pendulum's: it takes 40 microseconds, and every look of every trigger comes by here.
    return datetime.fromtimestamp(number / 1000, timezone.utc)


def _object(value: Any) -> Mapping[str, Any]:
    """Return a JSON object given as such or as text; anything else is an empty one."""
    value = decoded(value)
    return value if isinstance(value, dict) else {}


def _param(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return createTask's body as Kie tells it: JSON text whose ``input`` is JSON text once more."""
    return _object(data.get("param")) or _object(data.get("paramJson"))


@dataclass(frozen=True)
class Flux2Input:
    """A valid request for one of the four Flux-2 models. Make it with :meth:`parse`."""

    model: str
    prompt: str
    aspect_ratio: str
    resolution: str
    input_urls: tuple[str, ...] = ()
    nsfw_checker: bool | None = None

    @classmethod
    def parse(
        cls,
        model: Any,
        fields: Mapping[str, Any],
        *,
        images_field: str = "input_urls",
        allowed: Sequence[str] = (),
        problems: Iterable[str] = (),
    ) -> Flux2Input:
        """Check a model and its input fields, all at once.

        Values may come from templates, so text is accepted where it plainly means the value: ``"true"``, a list
        written as text, and ``"None"`` or ``""`` for an optional field.

        :param model: one of :data:`FLUX2_MODELS`, or of :data:`FLUX2_TIERS` (default: the first), which is then
            completed.
        :param fields: ``prompt`` (3 to 5000 characters, not counting white space around it), ``aspect_ratio``
            (default ``1:1``), ``resolution`` (default ``1K``), ``input_urls`` (1 to 8 http(s) URLs, or
            :func:`upload_reference` of files; image-to-image models only) and ``nsfw_checker`` (boolean, default: not
            sent).
        :param images_field: what the author calls ``input_urls``.
        :param allowed: all fields that the author can give, for the message; default: those of ``fields``.
        :param problems: what is known to be wrong already, to be reported with the rest.
        :raises KieValidationError: names every field that is wrong, its value, and what is allowed.
        """
        problems = list(problems)
        problems += [
            f"{name}: there is no such field; allowed: {', '.join(allowed or _FLUX2_FIELDS)}"
            for name in fields
            if name not in _FLUX2_FIELDS
        ]
        model = _or_default(model, FLUX2_TIERS[0])
        input_urls = _url_list(fields.get("input_urls"))
        if model in FLUX2_TIERS:
            model = f"{model}-image-to-image" if input_urls else f"{model}-text-to-image"
        takes_images = FLUX2_MODELS.get(model) if isinstance(model, str) else None
        if takes_images is None:
            problems.append(
                f"model: {shorten(model)} is not a Flux-2 model; allowed: {', '.join((*FLUX2_TIERS, *FLUX2_MODELS))}"
            )

        prompt = fields.get("prompt")
        shortest, longest = FLUX2_PROMPT_LENGTH
        if prompt is None or prompt == "None":
            problems.append(f"prompt: must be text, {got(prompt)}")
        elif not isinstance(prompt, str):
            problems.append(f"prompt: must be text, got {type(prompt).__name__} {shorten(prompt)}")
        elif not shortest <= len(prompt := prompt.strip()) <= longest:
            length = counted(len(prompt), "character")
            problems.append(f"prompt: {shorten(prompt)} has {length}; {shortest} to {longest} are allowed")

        aspect_ratio = _or_default(fields.get("aspect_ratio"), FLUX2_ASPECT_RATIOS[0])
        ratios = FLUX2_ASPECT_RATIOS if takes_images is False else (*FLUX2_ASPECT_RATIOS, FLUX2_ASPECT_RATIO_AUTO)
        if aspect_ratio == FLUX2_ASPECT_RATIO_AUTO and takes_images is False:
            problems.append(
                "aspect_ratio: 'auto' takes the ratio of the first input image, and "
                f"{model} takes none; allowed: {', '.join(ratios)}"
            )
        elif aspect_ratio not in ratios:
            problems.append(f"aspect_ratio: {shorten(aspect_ratio)} is not allowed; allowed: {', '.join(ratios)}")

        resolution = _or_default(fields.get("resolution"), FLUX2_RESOLUTIONS[0])
        if resolution not in FLUX2_RESOLUTIONS:
            problems.append(
                f"resolution: {shorten(resolution)} is not allowed; allowed: {', '.join(FLUX2_RESOLUTIONS)}"
            )

        problems += _image_problems(images_field, input_urls, model, takes_images=takes_images)

        nsfw_checker = _boolean(fields.get("nsfw_checker"))
        if not (nsfw_checker is None or isinstance(nsfw_checker, bool)):
            problems.append(f"nsfw_checker: must be true or false, got {shorten(nsfw_checker)}")

        raise_for_problems(problems)
        return cls(model, str(prompt), aspect_ratio, resolution, tuple(input_urls), nsfw_checker)

    def to_payload(self) -> dict[str, Any]:
        """Return createTask's ``input`` object.

        The three required fields are always there: the server does not apply the defaults its documentation names.
        """
        payload: dict[str, Any] = {
            "prompt": self.prompt,
            "aspect_ratio": self.aspect_ratio,
            "resolution": self.resolution,
        }
        if self.input_urls:
            payload["input_urls"] = list(self.input_urls)
        if self.nsfw_checker is not None:
            payload["nsfw_checker"] = self.nsfw_checker
        return payload


_FLUX2_FIELDS = ("prompt", "aspect_ratio", "resolution", "input_urls", "nsfw_checker")


def raise_for_problems(problems: Sequence[str], headline: str = "nothing was sent.") -> None:
    """Report everything that is wrong with a request at once.

    :param headline: what it means.
    :raises KieValidationError: there are problems; it has them in ``problems`` too.
    """
    if problems:
        error = KieValidationError("\n".join([headline, *(f"  - {problem}" for problem in problems)]))
        error.problems = tuple(problems)
        raise error


def shorten(value: Any, limit: int = 60) -> str:
    """Return ``repr(value)``, cut to ``limit`` characters, for an error message."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"<{type(value).__name__} nested too deep>"
    return text if len(text) <= limit else f"{text[:limit]}..."


def got(value: Any) -> str:
    """Say what came in the place of a value, for an error message."""
    if value is None or value == "None":
        return f"got {value!r}: the upstream task returned nothing"
    return f"got {shorten(value)}"


def is_kie_task_id(value: Any) -> bool:
    """Whether ``value`` can be the id of a Kie task. Kie's have 32 characters; their form is not promised."""
    return isinstance(value, str) and bool(re.fullmatch(r"[!-~]{1,200}", value))


def is_blank(value: Any) -> bool:
    """Whether ``value`` is nothing, or what a template or an empty cell of a CSV file makes of nothing."""
    if isinstance(value, float):
        return math.isnan(value)  # pandas
    return value is None or (isinstance(value, str) and value.strip() in ("", "None"))


def _or_default(value: Any, default: Any) -> Any:
    return default if is_blank(value) else value


def _boolean(value: Any) -> Any:
    if is_blank(value):
        return None
    words = {"true": True, "false": False}
    return words.get(value.strip().lower(), value) if isinstance(value, str) else value


def from_text(value: Any) -> Any:
    """Return the list or object that a template has turned into text; anything else as it is."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(value)
        with contextlib.suppress(ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return ast.literal_eval(value.strip())
    return value


def _url_list(value: Any) -> list[Any]:
    """Return the URLs as a list; one URL, or a list that a template turned into text, is accepted too."""
    if is_blank(value):
        return []
    value = from_text(value)
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def upload_reference(sha256: str) -> str:
    """Return what stands in ``input_urls`` for a file that is uploaded right before it is sent."""
    return f"sha256:{sha256}"


def is_upload_reference(url: Any) -> bool:
    """Whether this came from :func:`upload_reference`."""
    return isinstance(url, str) and bool(re.fullmatch("sha256:[0-9a-f]{64}", url))


def _image_problems(field_name: str, urls: list[Any], model: Any, *, takes_images: bool | None) -> list[str]:
    if takes_images is False and urls:
        twin = str(model).replace("text-to-image", "image-to-image")
        return [f"{field_name}: {model} takes no images; use {twin}"]
    if takes_images and not urls:
        return [f"{field_name}: {model} needs 1 to {FLUX2_MAX_INPUT_URLS} http(s) URLs of images, got none"]
    problems = [
        f"{field_name}[{i}]: must be an http(s) URL that Kie can fetch, {got(url)}"
        for i, url in enumerate(urls)
        if not is_http_url(url) and not is_upload_reference(url)
    ]
    if len(urls) > FLUX2_MAX_INPUT_URLS:
        problems.append(f"{field_name}: {len(urls)} given; at most {FLUX2_MAX_INPUT_URLS} are allowed")
    return problems
