"""Times of cron lines against a matcher that looks at every minute, across changes of the clock."""

import random
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from pipelines.errors import UserError
from pipelines.evaluate.schedule import next_time
from pipelines.recipe.evaluation import ScheduleSection

MINUTE = timedelta(minutes=1)
DAYS = "sun mon tue wed thu fri sat".split()
MONTHS = "0 jan feb mar apr may jun jul aug sep oct nov dec".split()


def numbers(field: str, low: int, high: int, names: list[str]) -> set[int]:
    """The numbers that a field of crontab(5) stands for."""
    found = set()
    for part in field.split(","):
        span, _, step = part.partition("/")
        ends = [names.index(e) if e in names else int(e) for e in span.split("-") if e != "*"]
        first, last = (ends[0], ends[-1]) if ends else (low, high)
        last = high if step and len(ends) == 1 else last
        found |= set(range(first, last + 1, int(step or 1)))
    return found


class Line:
    """A cron line that is asked about one minute of the wall's clock at a time."""

    def __init__(self, text: str) -> None:
        minute, hour, day, month, weekday = text.lower().split()
        self.minutes, self.hours = numbers(minute, 0, 59, []), numbers(hour, 0, 23, [])
        self.days, self.months = numbers(day, 1, 31, []), numbers(month, 1, 12, MONTHS)
        self.weekdays = {number % 7 for number in numbers(weekday, 0, 7, DAYS)}
        self.needs_both_days = day.startswith("*") or weekday.startswith("*")
        self.follows_the_wall = minute.startswith("*") or hour.startswith("*")

    def holds(self, wall: datetime) -> bool:
        day, weekday = wall.day in self.days, wall.isoweekday() % 7 in self.weekdays
        return (
            wall.minute in self.minutes
            and wall.hour in self.hours
            and wall.month in self.months
            and ((day and weekday) if self.needs_both_days else (day or weekday))
        )


def every_minute(start: datetime, end: datetime) -> Iterable[datetime]:
    while (start := start + MINUTE) <= end:
        yield start


def expected(text: str, zone: ZoneInfo, start: datetime, end: datetime) -> list[datetime]:
    """Every time of a line after start until end, in UTC, by looking at every minute.

    A line that follows the wall's clock runs whenever that shows a time of it. Another one runs
    once a time: at the first of two passes, and at the end of a gap that swallowed the time.
    """
    line = Line(text)
    if line.follows_the_wall:
        return [at for at in every_minute(start, end) if line.holds(at.astimezone(zone))]
    first: dict[datetime, datetime] = {}
    for at in every_minute(start, end):
        first.setdefault(at.astimezone(zone).replace(tzinfo=None), at)
    found = set()
    for wall in every_minute(min(first) - MINUTE, max(first)):
        if line.holds(wall):
            found.add(first[next(w for w in every_minute(wall - MINUTE, max(first)) if w in first)])
    return sorted(found)


def times(text: str, zone: str, start: datetime, end: datetime) -> list[datetime]:
    section, found = ScheduleSection(cron=text, timezone=zone), [start]
    while found[-1] <= end:
        found.append(next_time(section, found[-1]))
    return found[1:-1]


def drawn(rng: random.Random, low: int, high: int) -> str:
    first, last = sorted(rng.sample(range(low, high + 1), 2))
    step = rng.randint(2, 5)
    return rng.choice(["*", "*", f"*/{step}", f"{first}", f"{first}-{last}", f"{first},{last}",
                       f"{first}-{last}/{step}"])  # fmt: skip


def some_lines(count: int) -> list[str]:
    rng = random.Random(7)
    return [
        f"{drawn(rng, 0, 59)} {drawn(rng, 0, 4)} {drawn(rng, 1, 31)} "
        f"{rng.choice(['*', '3-10', '*/2'])} {drawn(rng, 0, 7)}"
        for _ in range(count)
    ]


LINES = ["*/30 * * * *", "30 2 * * *", "0,45 1-3 * * *", "15 0 * * *", "0 */2 * * *", "30 2 * * 7",
         "*/20 2 * * 5-7", "0 3 29 * mon", *some_lines(30)]  # fmt: skip
# Days with a change of the clock, forwards and back; the last zones jump at midnight or by half an
# hour.
CHANGES = {
    "Europe/Berlin": ["2026-03-29", "2026-10-25"],
    "America/New_York": ["2026-03-08", "2026-11-01"],
    "Australia/Sydney": ["2026-10-04", "2026-04-05"],
    "Asia/Kolkata": ["2026-02-28"],
    "UTC": ["2028-02-29"],
    "America/Santiago": ["2026-09-06", "2026-04-05"],
    "Australia/Lord_Howe": ["2026-10-04", "2026-04-05"],
}
# next_time's docstring says which lines can miss a time there.
MISSES = ("America/Santiago", "Australia/Lord_Howe")


@pytest.mark.parametrize("zone", CHANGES)
def test_times_are_those_of_every_minute(zone: str) -> None:
    """Two days around each change. What is asked in the middle of a repeated hour lies ahead."""
    counted = 0
    for day in CHANGES[zone]:
        start = datetime.fromisoformat(f"{day}T00:00").replace(tzinfo=ZoneInfo(zone))
        start = (start - timedelta(hours=12)).astimezone(UTC)
        end = start + timedelta(days=2)
        for text in LINES:
            if Line(text).follows_the_wall and zone in MISSES:
                continue
            wanted = expected(text, ZoneInfo(zone), start, end)
            assert times(text, zone, start, end) == wanted, (text, day)
            counted += len(wanted)
            section = ScheduleSection(cron=text, timezone=zone)
            for minutes in range(0, 2000, 97):
                after = start + minutes * MINUTE + timedelta(microseconds=1)
                ahead = [at for at in wanted if at > after]
                if ahead:
                    assert next_time(section, after) == ahead[0], (text, after)
    assert counted > 50


@pytest.mark.parametrize("days", [
    "* * 0", "* * 7", "* * 1-5", "* * 5-7", "* * sat,mon", "* * */2", "* * 1/2", "* * SUN",
    "* * wed-fri", "13 * 5", "*/2 * 1", "1-7 * */1", "31 * *", "29 feb *", "1 jan,jul-sep/2 *",
    "28-31 2 sun",
])  # fmt: skip
def test_days_are_those_of_crontab(days: str) -> None:
    """Three years' days, a leap day among them. Day and weekday: either, or both with a `*`."""
    start = datetime(2026, 11, 23, tzinfo=UTC) - MINUTE
    end = start + timedelta(days=1100)
    every_day = [start + MINUTE + timedelta(days=n) for n in range(1100)]
    line = Line(f"0 0 {days}")
    assert times(f"0 0 {days}", "UTC", start, end) == [at for at in every_day if line.holds(at)]


@pytest.mark.parametrize(
    ("name", "line"),
    [("@hourly", "0 * * * *"), ("@daily", "0 0 * * *"), ("@midnight", "0 0 * * *"),
     ("@Weekly", "0 0 * * 7"), ("@monthly", "0 0 1 * *"), ("@yearly", "0 0 1 1 *"),
     ("@annually", "0 0 1 1 *")],
)  # fmt: skip
def test_names_of_lines(name: str, line: str) -> None:
    start = datetime(2026, 3, 28, 7, 30, tzinfo=UTC)
    end = start + timedelta(days=800)
    named = times(name, "Europe/Berlin", start, end)
    assert named == times(line, "Europe/Berlin", start, end) and len(named) > 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("61 * * * *", "minute '61': allowed are 0 to 59"),
        ("*/0 * * * *", "minute '\\*/0'"),
        ("0 24 * * *", "hour '24': allowed are 0 to 23"),
        ("0 0 0 * *", "day-of-month '0': allowed are 1 to 31"),
        ("0 0 30 2 *", "day-of-month '30': allowed are 1 to 31, a day that one of the months has"),
        ("0 0 * foo *", "month 'foo': allowed are 1 to 12 or jan to dec"),
        ("0 0 * * 8", "day-of-week '8': allowed are 0 to 7 or sun to sat"),
        ("0 0 * * fri-mon", "day-of-week 'fri-mon': .* 5-7,1 is Friday to Monday"),
        ("* * *", "needs five fields"),
        ("* * * * * *", "needs five fields"),
        ("@reboot", "needs five fields"),
        ("", "needs five fields"),
    ],
)
def test_a_wrong_line_is_one_clear_line(line: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^schedule.cron = '.*': {message}") as error:
        next_time(ScheduleSection(cron=line), datetime.now(UTC))
    assert "\n" not in str(error.value) and "write minute hour day month weekday" in str(
        error.value
    )


def test_a_wrong_time_zone_is_one_clear_line() -> None:
    with pytest.raises(UserError, match="schedule.timezone = 'Mars/Base': no such time zone"):
        next_time(ScheduleSection(cron="* * * * *", timezone="Mars/Base"), datetime.now(UTC))
