"""What a run may spend at a server, in requests and in tokens.

Tokens are known only afterwards, so each request reserves the most that it can take: its answer's
limit, and as much input as the largest request so far. One that does not fit beside the others in
flight waits until they have settled; if it does not fit alone, the budget is spent. The first
request goes alone, since only its answer tells how many tokens a picture is.
"""

import asyncio

from capwright.core.errors import CapwrightError


class BudgetSpent(CapwrightError):
    """The next request could cost more than the run was allowed."""


class Budget:
    """Counts requests and tokens; used in one event loop."""

    def __init__(self, max_requests: int | None, max_tokens: int | None) -> None:
        self.max_requests, self.max_tokens = max_requests, max_tokens
        self.requests = 0
        self.input_tokens = self.output_tokens = 0
        self.largest_input = 0
        self._reserved: list[int] = []
        self._settled = asyncio.Event()

    @property
    def tokens(self) -> int:
        """Tokens that the server counted so far."""
        return self.input_tokens + self.output_tokens

    async def reserve(self, input_guess: int, answer_tokens: int) -> int:
        """Count a request about to be sent; gives what `settle` wants back. Raises BudgetSpent."""
        while True:
            tokens = max(input_guess, self.largest_input) + answer_tokens
            if self.max_requests is not None and self.requests >= self.max_requests:
                raise BudgetSpent(
                    f"the budget of max_requests={self.max_requests} is spent: {self._what_now()}"
                )
            if self.max_tokens is None:
                break
            fits = self.tokens + sum(self._reserved) + tokens <= self.max_tokens
            if fits and (self.largest_input or not self._reserved):
                break
            if not self._reserved:
                raise BudgetSpent(
                    f"the budget of max_tokens={self.max_tokens} has "
                    f"{self.max_tokens - self.tokens} left and the next request may take "
                    f"{tokens}: {self._what_now()}"
                )
            self._settled.clear()
            await self._settled.wait()
        self.requests += 1
        self._reserved.append(tokens)
        return tokens

    def settle(self, reserved: int, input_tokens: int, output_tokens: int) -> None:
        """Count what the request took; nothing, if it failed."""
        self._reserved.remove(reserved)
        self.input_tokens += input_tokens
        self.output_tokens += output_tokens
        self.largest_input = max(self.largest_input, input_tokens)
        self._settled.set()

    def _what_now(self) -> str:
        return (
            f"{self.requests} requests took {self.tokens} tokens; allow more and run the same "
            "command again, finished shards are kept"
        )
