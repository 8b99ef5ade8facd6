import asyncio
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie_provider.client import errors, polling
from kie_provider.client.errors import KieError
from kie_provider.client.polling import Done, PollAgain, Raise, Waiting, judge
from kie_provider.client.records import TaskRecord, TaskState

START = 1_790_000_000.0


def running(word="generating"):
    return TaskRecord("abc", TaskState.RUNNING, word)


SUCCESS = TaskRecord("abc", TaskState.SUCCESS, "success", urls=("https://x/1.png",))
NOT_FOUND = errors.KieNotFoundError("recordInfo is null", code=422, kie_task_id="abc")
REFUSED_KEY = errors.KieAuthError("Unauthorized", code=401, kie_task_id="abc")
BUSY = errors.KieServerError("Server exception", code=500, kie_task_id="abc")


# ---------------------------------------------------------------- judge


def test_success_is_done():
    assert judge(SUCCESS, Waiting(START), START) == Done(SUCCESS)


def test_success_with_a_result_object_is_done():
    for result in ({"text": "x"}, "", 0, False):
        record = TaskRecord("abc", TaskState.SUCCESS, "success", result=result)
        assert judge(record, Waiting(START), START) == Done(record)


def test_success_without_a_result_is_an_error():
    verdict = judge(TaskRecord("abc", TaskState.SUCCESS, "success"), Waiting(START), START)
    assert isinstance(verdict, Raise)
    assert type(verdict.error) is errors.KieResultError
    assert verdict.error.kie_task_id == "abc"
    assert not verdict.error.is_transient


@pytest.mark.parametrize(
    ("callback", "elapsed", "interval"),
    [
        (None, 0, 3),
        ("expected", 0, 10),
        ("expected", 10, 20),
        ("expected", 9, 21),
        ("expected", 22, 8),
        ("expected", 27, 60),
        ("expected", 30, 60),
        ("expected", 500, 60),
        ("came", 0, 3),
        ("came", 59, 3),
        ("came", 60, 60),
    ],
)
def test_polls_are_rare_while_a_callback_is_to_come(callback, elapsed, interval):
    verdict = judge(running(), Waiting(START, 3.0, callback=callback), START + elapsed)
    assert verdict.delay == interval
    assert verdict.waiting.callback == callback


def test_an_interval_that_is_longer_stays():
    assert judge(running(), Waiting(START, 120.0, callback="expected"), START).delay == 120


@pytest.mark.parametrize(
    ("code", "message", "text"),
    [
        ("422", "the prompt was flagged", "the prompt was flagged [Kie code 422, Kie task abc]"),
        (None, None, "Kie gave no reason [Kie task abc]"),
    ],
)
def test_a_failed_task_says_why(code, message, text):
    verdict = judge(
        TaskRecord("abc", TaskState.FAIL, "fail", fail_code=code, fail_message=message), Waiting(START), START
    )
    assert isinstance(verdict, Raise)
    assert type(verdict.error) is errors.KieTaskFailedError
    assert text in str(verdict.error)


@pytest.mark.parametrize("observation", [SUCCESS, NOT_FOUND, BUSY, running()])
def test_success_counts_after_the_deadline_and_final_errors_stay_what_they_are(observation):
    waiting = Waiting(START, deadline=START + 10, visible_at=START - 1000, failing_since=START - 1000)
    verdict = judge(observation, waiting, START + 11)
    if observation is SUCCESS:
        assert verdict == Done(SUCCESS)
    elif observation in (NOT_FOUND, BUSY):
        assert verdict == Raise(observation)
    else:
        assert isinstance(verdict, Raise)
        assert type(verdict.error) is errors.KieTaskTimeoutError


@pytest.mark.parametrize(
    ("observation", "reason"),
    [
        (running("queuing"), "still queuing after 10 seconds of this wait"),
        (BUSY, "the last poll failed (Kie.ai server error: Server exception) after 10 seconds of this wait"),
        (NOT_FOUND, "recordInfo is null after 10 seconds of this wait"),
        (
            REFUSED_KEY,
            "the last poll failed (Kie.ai did not accept the API key: Unauthorized) after 10 seconds of this wait",
        ),
    ],
)
def test_the_deadline(observation, reason):
    waiting = Waiting(START, deadline=START + 10)
    assert isinstance(judge(observation, waiting, START + 9.999), PollAgain)
    verdict = judge(observation, waiting, START + 10)
    assert isinstance(verdict, Raise)
    assert type(verdict.error) is errors.KieTaskTimeoutError
    assert verdict.error.message == reason
    assert verdict.error.kie_task_id == "abc"


def delays(observations, *, seconds_apart, waiting):
    """Judge one observation after the other and return the delays that are asked for."""
    found, now = [], waiting.started_at
    for observation in observations:
        verdict = judge(observation, waiting, now)
        assert isinstance(verdict, PollAgain)
        found.append(verdict.delay)
        waiting, now = verdict.waiting, now + seconds_apart
    return found


def test_the_interval_grows_after_a_minute_up_to_fifteen_seconds():
    assert delays([running()] * 8, seconds_apart=20, waiting=Waiting(START)) == [
        3,  # at 0 s
        3,
        3,
        4.5,  # at 60 s
        6.75,
        10.125,
        15,
        15,
    ]


def test_the_interval_is_steady_for_sixty_seconds():
    assert judge(running(), Waiting(START), START + 59.9).delay == 3
    assert judge(running(), Waiting(START), START + 60).delay == 4.5


@pytest.mark.parametrize("poll_interval", [15, 20, 120])
def test_a_longer_interval_than_fifteen_seconds_stays(poll_interval):
    asked = delays([running()] * 5, seconds_apart=60, waiting=Waiting(START, poll_interval=poll_interval))
    assert asked == [poll_interval] * 5


def test_a_grown_interval_is_kept_when_a_look_fails():
    waiting = Waiting(START, interval=10.0, visible_at=START)
    assert judge(NOT_FOUND, waiting, START + 10).delay == 10
    assert judge(BUSY, waiting, START + 10).delay == 10


@pytest.mark.parametrize("visible_at", [None, START + 1000])
def test_an_invisible_record_has_ninety_seconds_since_it_was_last_seen(visible_at):
    waiting = Waiting(START, visible_at=visible_at)
    since = visible_at or START
    verdict = judge(NOT_FOUND, waiting, since + 89.9)
    assert isinstance(verdict, PollAgain)
    assert verdict.waiting.visible_at == visible_at
    assert judge(NOT_FOUND, waiting, since + 90) == Raise(NOT_FOUND)
    assert judge(NOT_FOUND, waiting, since + 91) == Raise(NOT_FOUND)


def test_seeing_the_record_starts_its_grace_anew():
    verdict = judge(running(), Waiting(START), START + 80)
    assert verdict.waiting.visible_at == START + 80
    assert isinstance(judge(NOT_FOUND, verdict.waiting, START + 169), PollAgain)
    assert isinstance(judge(NOT_FOUND, verdict.waiting, START + 170), Raise)


def test_a_refused_key_is_read_anew_once_in_a_row():
    first = judge(REFUSED_KEY, Waiting(START), START)
    assert (first.delay, first.refresh_key) == (0, True)
    assert judge(REFUSED_KEY, first.waiting, START + 1) == Raise(REFUSED_KEY)

    failed_since = judge(BUSY, first.waiting, START + 1)
    assert judge(REFUSED_KEY, failed_since.waiting, START + 2) == Raise(REFUSED_KEY)

    good_since = judge(running(), first.waiting, START + 1)
    again = judge(REFUSED_KEY, good_since.waiting, START + 2)
    assert (again.delay, again.refresh_key) == (0, True)


def test_failures_in_a_row_are_waited_out_for_six_minutes():
    waiting, now, asked = Waiting(START), START, []
    while isinstance(verdict := judge(BUSY, waiting, now), PollAgain):
        asked.append(verdict.delay)
        waiting, now = verdict.waiting, now + verdict.delay
    assert asked == [3, 6, 12, 24, 48, 60, 60, 60, 60, 60]
    assert now - START == 393
    assert verdict == Raise(BUSY)


@pytest.mark.parametrize("good", [running(), NOT_FOUND])
def test_a_good_look_restores_the_patience(good):
    first = judge(BUSY, Waiting(START), START + 10)
    assert isinstance(judge(BUSY, first.waiting, START + 369), PollAgain)
    assert judge(BUSY, first.waiting, START + 370) == Raise(BUSY)
    between = judge(good, first.waiting, START + 20)
    later = judge(BUSY, between.waiting, START + 380)
    assert later.delay == 3
    assert isinstance(judge(BUSY, later.waiting, START + 739), PollAgain)


def test_retry_after_lengthens_the_delay_only():
    def asked(seconds):
        return judge(errors.KieRateLimitError("x", code=429, retry_after=seconds), Waiting(START), START).delay

    assert [asked(None), asked(0.0), asked(2.0), asked(45.0), asked(600.0)] == [3, 3, 3, 45, 600]


@pytest.mark.parametrize(
    "error_class",
    [
        KieError,
        errors.KieInsufficientCreditsError,
        errors.KieValidationError,
        errors.KieQuotaError,
        errors.KieFeatureDisabledError,
        errors.KieTaskFailedError,
    ],
)
def test_final_errors_end_the_wait_at_once(error_class):
    error = error_class("x")
    assert judge(error, Waiting(START), START) == Raise(error)


@pytest.mark.parametrize(
    "error_class", [errors.KieRateLimitError, errors.KieMaintenanceError, errors.KieTransportError]
)
def test_passing_errors_are_waited_out(error_class):
    assert isinstance(judge(error_class("x"), Waiting(START), START), PollAgain)


# ---------------------------------------------------------------- the loops, on a simulated clock


@dataclass
class World:
    """A clock that sleeps and looks move forward, and what the looks will show."""

    script: list  # of (seconds the look takes, observation); SUCCESS after the last one
    now: float = START
    sleeps: list = field(default_factory=list)  # (from, seconds)
    looks: list = field(default_factory=list)  # (start, end, observation)
    refreshes: list = field(default_factory=list)  # number of looks before

    def clock(self):
        return self.now

    def sleep(self, seconds):
        assert seconds >= 0
        self.sleeps.append((self.now, seconds))
        self.now += seconds

    def look(self):
        latency, observation = self.script[len(self.looks)] if len(self.looks) < len(self.script) else (0.0, SUCCESS)
        start, self.now = self.now, self.now + latency
        self.looks.append((start, self.now, observation))
        return observation

    async def sleep_async(self, seconds):
        self.sleep(seconds)

    async def poll(self, *, refresh_key=False):
        self.refreshes += [len(self.looks)] * refresh_key
        return self.look()

    def wait(self, waiting):
        async def main():
            try:
                return await polling.watch(waiting, self.poll, clock=self.clock, sleep=self.sleep_async)
            except KieError as error:
                return error

        return asyncio.run(main())


def test_the_first_look_is_due_at_once():
    world = World([])
    assert world.wait(Waiting(START)) is SUCCESS
    assert world.sleeps == []


def test_a_wait_that_times_out_takes_its_last_look_at_the_deadline():
    world = World([(0.0, running())] * 1000)
    error = world.wait(Waiting(START, deadline=START + 30))
    assert type(error) is errors.KieTaskTimeoutError
    assert world.looks[-1][0] == START + 30
    assert len([look for look in world.looks if look[1] >= START + 30]) == 1
    assert 10 <= len(world.looks) <= 13


def test_a_deadline_in_the_past_still_gives_one_look():
    world = World([(0.0, running())] * 10)
    assert type(world.wait(Waiting(START, deadline=START - 100))) is errors.KieTaskTimeoutError
    assert len(world.looks) == 1
    assert World([]).wait(Waiting(START, deadline=START - 100)) is SUCCESS


def test_a_long_delay_is_cut_at_the_deadline():
    patient = errors.KieRateLimitError("x", retry_after=3600.0)
    world = World([(0.0, patient), (0.0, SUCCESS)])
    assert world.wait(Waiting(START, deadline=START + 60)) is SUCCESS
    assert world.now == START + 60


def test_a_rotated_key_is_read_before_the_next_look():
    world = World([(1.0, running()), (1.0, REFUSED_KEY), (1.0, running())])
    assert world.wait(Waiting(START)) is SUCCESS
    assert world.refreshes == [2]
    assert world.sleeps[1][1] == 0


def test_a_wait_goes_on_where_another_process_stopped():
    world = World([(0.0, running())])
    world.wait(Waiting(START - 600, interval=15.0, visible_at=START - 5))
    assert 13.5 <= world.sleeps[0][1] <= 16.5


ERRORS = [
    KieError("odd"),
    NOT_FOUND,
    REFUSED_KEY,
    BUSY,
    errors.KieRateLimitError("slow down", retry_after=7.0),
    errors.KieRateLimitError("slow down", retry_after=500.0),
    errors.KieTransportError("reset"),
    errors.KieValidationError("odd"),
]
OBSERVATIONS = st.one_of(
    st.sampled_from([running("waiting"), running(), SUCCESS, TaskRecord("abc", TaskState.FAIL, "fail"), *ERRORS]),
    st.just(running()),
    st.sampled_from([NOT_FOUND, BUSY]),
)
SCRIPTS = st.lists(st.tuples(st.floats(0, 70), OBSERVATIONS), max_size=40)
WAITS = st.builds(
    Waiting,
    started_at=st.just(START) | st.floats(START - 2000, START),
    poll_interval=st.sampled_from([0.5, 3.0, 3.3, 15.0, 40.0]),
    deadline=st.none() | st.floats(START - 10, START + 1200),
    visible_at=st.none() | st.just(START),
)


@given(SCRIPTS, WAITS, st.integers(0, 2**32))
def test_every_wait_keeps_its_promises(script, waiting, seed):
    random.seed(seed)
    world = World(script)
    outcome = world.wait(waiting)
    deadline = waiting.deadline

    # It looks at once, then between two looks it sleeps once.
    assert world.looks[0][0] == START
    assert len(world.sleeps) == len(world.looks) - 1

    # The key is read anew once for a refused key, never twice without a record in between.
    for before, after in zip([None, *world.refreshes], world.refreshes, strict=False):
        assert world.looks[after - 1][2] is REFUSED_KEY
        if before is not None:
            assert any(isinstance(look[2], TaskRecord) for look in world.looks[before:after])

    failing_since = None
    for (_, end, observation), (slept_from, slept) in zip(world.looks, world.sleeps, strict=False):
        assert slept_from == end
        cut = deadline is not None and end + slept >= deadline - 1e-6
        if deadline is not None:
            assert end + slept <= max(deadline, end) + 1e-6  # never past the deadline
            assert end < deadline  # only the very last look ends at or after it
        is_passing_error = isinstance(observation, KieError) and observation.is_transient
        if not is_passing_error and observation is not REFUSED_KEY:
            failing_since = None
        elif failing_since is None and is_passing_error:
            failing_since = end
        if observation is not REFUSED_KEY:  # for which the key is read anew, however long the failures have lasted
            assert failing_since is None or end - failing_since < polling.FAILURE_PATIENCE
        retry_after = (isinstance(observation, KieError) and observation.retry_after) or 0.0
        if observation is REFUSED_KEY:
            assert slept == 0
        elif not cut:
            assert slept >= 0.9 * waiting.poll_interval
            assert slept >= retry_after
        longest = 60 if is_passing_error else 15
        assert slept <= 1.1 * max(longest, waiting.poll_interval, retry_after) + 1e-6

    # A wait ends with the last observation, or with the deadline.
    last = world.looks[-1][2]
    if isinstance(outcome, errors.KieTaskTimeoutError):
        assert world.looks[-1][1] >= deadline
        assert last is not SUCCESS
    elif isinstance(last, KieError):
        assert outcome is last
    else:
        assert last.state is not TaskState.RUNNING
        assert (outcome is SUCCESS) == (last is SUCCESS)


#: Every class of error there is, with any wish for a pause.
ANY_ERROR = st.builds(
    lambda error_class, retry_after: error_class("odd", kie_task_id="abc", retry_after=retry_after),
    st.sampled_from(sorted(errors.error_classes(), key=lambda error_class: error_class.__name__)),
    st.none() | st.floats(0, 1e7),
)
ANY_RECORD = st.builds(
    TaskRecord,
    st.just("abc"),
    st.sampled_from(TaskState),
    st.text(max_size=5),
    urls=st.sampled_from([(), ("https://x/1.png",)]),
    result=st.sampled_from([None, {}, ""]),
    fail_code=st.none() | st.text(max_size=5),
    fail_message=st.none() | st.text(max_size=5),
)


@given(ANY_ERROR | ANY_RECORD, WAITS, st.floats(-1e4, 1e4), st.integers(0, 2000), st.floats(0, 1e4))
def test_every_look_has_a_verdict(observation, waiting, after, failures, failing_for):
    now = START + after
    waiting = polling.replace(waiting, failures=failures, failing_since=now - failing_for if failures else None)
    verdict = judge(observation, waiting, now)
    if isinstance(verdict, PollAgain):
        assert verdict.delay >= 0
        assert waiting.deadline is None or now < waiting.deadline
        if isinstance(observation, KieError) and observation.is_transient:
            assert verdict.delay >= (observation.retry_after or 0)
        assert verdict.delay >= waiting.poll_interval or verdict.refresh_key
        assert (verdict.waiting.started_at, verdict.waiting.deadline) == (waiting.started_at, waiting.deadline)
    elif isinstance(verdict, Done):
        assert verdict.record is observation
        assert observation.has_result
    else:
        assert isinstance(verdict.error, KieError)
        assert verdict.error.kie_task_id == "abc"


@given(
    st.lists(st.tuples(st.floats(0, 70), ANY_ERROR | ANY_RECORD), min_size=1, max_size=6),
    WAITS,
    st.integers(0, 2**32),
)
def test_whatever_goes_on_for_ever_ends_at_the_deadline(pattern, waiting, seed):
    random.seed(seed)
    waiting = polling.replace(waiting, deadline=waiting.deadline or START + 900)
    seconds = max(waiting.deadline - START, 0)
    # A look every poll_interval (10 % of jitter), between any two of them one for a key that was read anew, one at the
    # start, one at the deadline, and one more where rounding has cut the last pause a hair too short.
    most = 2 * (seconds / (0.9 * waiting.poll_interval) + 3)
    world = World(pattern * (int(most / len(pattern)) + 2))
    outcome = world.wait(waiting)
    assert len(world.looks) <= most
    assert outcome is not SUCCESS  # the script's end was not reached
    if isinstance(outcome, errors.KieTaskTimeoutError) and outcome is not world.looks[-1][2]:
        assert world.looks[-1][1] >= waiting.deadline
    assert all(end < waiting.deadline for _, end, _ in world.looks[:-1])
    assert world.looks[-1][0] <= max(waiting.deadline, START) + 1e-6


def test_a_crash_of_the_poll_is_not_swallowed():
    async def poll(*, refresh_key=False):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(polling.watch(Waiting(START), poll))
