"""A request's stay at the server: its place, its part of the budget and its time.

It begins when the request is ready to be written to the connection, since what the client does
before that takes time of this machine and none of the server.
"""

import asyncio
from contextvars import ContextVar
from typing import Any

from capwright.captions.server.budget import Budget
from capwright.captions.server.messages import Reply
from capwright.captions.server.pacing import Pace


class Visit:
    """What a request takes at the server, and gives back."""

    def __init__(
        self, pace: Pace, budget: Budget, again: bool, input_guess: int, answer_tokens: int
    ) -> None:
        self.pace, self.budget, self.again = pace, budget, again
        self.tokens = (input_guess, answer_tokens)
        self.timeout: asyncio.Timeout | None = None
        self.timeout_s = 0.0
        self.entered: float | None = None
        self.reserved: int | None = None
        self.good = self.complaint = False

    async def begin(self) -> None:
        """Wait for a place and reserve the tokens. Raises BudgetSpent."""
        if self.entered is None:  # a redirection comes here again
            self.entered = await self.pace.enter(again=self.again)
            self.reserved = await self.budget.reserve(*self.tokens)
            assert self.timeout is not None
            self.timeout.reschedule(asyncio.get_running_loop().time() + self.timeout_s)

    def end(self, reply: Reply) -> None:
        """Give back what was taken; what a server does not count, counts as much as it may be."""
        tokens = (reply.input_tokens, reply.output_tokens)
        if self.good and not any(tokens):
            tokens = (max(1, self.tokens[0]), self.tokens[1])
        if self.reserved is not None:
            self.budget.settle(self.reserved, *tokens)
        if self.entered is not None:
            self.pace.leave(self.entered, good=self.good, complaint=self.complaint)


VISIT: ContextVar[Visit | None] = ContextVar("visit", default=None)


async def begin_visit(request: Any) -> None:
    """The HTTP client calls this before it sends."""
    if visit := VISIT.get():
        await visit.begin()
