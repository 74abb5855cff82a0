"""Any OpenAI-compatible server, asked many things at once without drowning it.

`Server.ask` takes requests and gives replies in their order; what went wrong with one is the reason
in its reply. `client.py` sends, retries and gives up, `pacing.py` finds how many requests the
server takes at a time, `visit.py` is a request's stay there, `budget.py` stops before more is spent
than was allowed, and `messages.py` is the form of requests and replies. It works with vLLM, SGLang,
llama.cpp, `transformers serve` and hosted services.
"""

from capwright.captions.server.budget import BudgetSpent
from capwright.captions.server.client import Server
from capwright.captions.server.messages import Reply, Request, ServerConfig

__all__ = ["BudgetSpent", "Reply", "Request", "Server", "ServerConfig"]
