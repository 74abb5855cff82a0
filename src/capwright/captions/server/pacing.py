"""How many requests a server takes at a time, found while asking it.

Algorithm: TCP's congestion control (Jacobson, "Congestion avoidance and control", 1988). The limit
grows by one with each good reply while it is used up, which doubles it in a round trip, until the
server first complains (too many requests, unavailable, too slow); from then on it grows by one in a
round trip. A complaint halves it, once for all requests that were under way together. A server that
says when to come back (`Retry-After`), or that complains about a single request at a time, is left
alone until then.
"""

import asyncio
import random
import time
from collections import deque
from email.utils import parsedate_to_datetime

START = 8  # requests at once before the server is known
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 60.0


class Pace:
    """A limit of requests in flight that adapts; used in one event loop."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = float(min(START, most))
        self.in_flight = 0
        self._known = False  # whether the server has complained
        self._cut = float("-inf")
        self._gate: asyncio.TimerHandle | None = None  # opens again, while nobody may enter
        self._queue: deque[asyncio.Future[None]] = deque()

    async def enter(self, *, again: bool = False) -> float:
        """Wait for a place and take it; gives the time that `leave` wants back.

        A request that is tried again goes before those that were not sent yet.
        """
        loop = asyncio.get_running_loop()
        place = loop.create_future()
        if again:
            self._queue.appendleft(place)
        else:
            self._queue.append(place)
        self._admit()
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():  # it was given just then
                self._give_up_place()
            raise
        return loop.time()

    def leave(self, entered: float, *, good: bool = False, complaint: bool = False) -> None:
        """Free the place; `good` was answered, `complaint` says that there are too many."""
        if good and (self._queue or self.in_flight >= int(self.limit)):
            self.limit = min(self.most, self.limit + (1 / self.limit if self._known else 1))
        if complaint and entered > self._cut:
            self._known = True
            self._cut = asyncio.get_running_loop().time()
            self.limit = max(1.0, min(self.limit, self.in_flight) / 2)
        self._give_up_place()

    def close(self, seconds: float) -> None:
        """Let nobody enter for so long."""
        loop = asyncio.get_running_loop()
        opens = loop.time() + seconds
        if self._gate is None or opens > self._gate.when():
            if self._gate:
                self._gate.cancel()
            self._gate = loop.call_at(opens, self._open)

    def _open(self) -> None:
        self._gate = None
        self._admit()

    def _give_up_place(self) -> None:
        self.in_flight -= 1
        self._admit()

    def _admit(self) -> None:
        while not self._gate and self._queue and self.in_flight < int(self.limit):
            place = self._queue.popleft()
            if not place.done():
                self.in_flight += 1
                place.set_result(None)


def backoff(attempt: int) -> float:
    """Seconds to wait before trying again: exponential with full jitter."""
    return random.uniform(0, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt))


def retry_after(header: str | None) -> float | None:
    """The seconds that a `Retry-After` header asks for, given as such or as a date."""
    if not header:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
