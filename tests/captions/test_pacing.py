"""The limit of requests in flight, and when a server wants to be asked again."""

import asyncio
from email.utils import formatdate

from capwright.captions.server.pacing import Pace, retry_after


def test_headers_that_say_when_to_come_back() -> None:
    assert retry_after(None) is retry_after("soon") is None
    assert retry_after("1.5") == 1.5
    assert retry_after("-3") == retry_after(formatdate(0, usegmt=True)) == 0


def test_complaints_halve_the_limit_once_in_a_round_trip() -> None:
    async def scenario() -> list[float]:
        pace = Pace(64)
        limits = [pace.limit]
        entered = [await pace.enter() for _ in range(8)]
        pace.leave(entered.pop(), complaint=True)
        limits.append(pace.limit)
        pace.leave(entered.pop(), complaint=True)  # was under way with the first
        limits.append(pace.limit)
        for moment in entered:
            pace.leave(moment)
        await asyncio.sleep(0.001)
        pace.leave(await pace.enter(), complaint=True)
        limits.append(pace.limit)
        return limits

    assert asyncio.run(scenario()) == [8.0, 4.0, 4.0, 1.0]


def test_a_place_is_not_lost_with_those_who_stop_waiting() -> None:
    async def scenario() -> None:
        pace = Pace(1)
        entered = await pace.enter()
        gone = asyncio.create_task(pace.enter())
        given = asyncio.create_task(pace.enter())
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        pace.leave(entered)
        given.cancel()  # just when it was given the place
        await asyncio.sleep(0)
        await asyncio.wait_for(pace.enter(), 1)
        assert pace.in_flight == 1

    asyncio.run(scenario())
