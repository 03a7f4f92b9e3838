"""Resilience patterns: policies around a step's attempts, and functions for many things at once within a step.

@workflow.step(policies=[Fallback("prices", None), CircuitBreaker("shop"), RateLimit("shop", per_second=10)])
async def price(item: str) -> float | None: ...
"""

from bitactor.declare.policy import Call, Policy, PolicyState, Proceed
from bitactor.patterns.batch import Batching
from bitactor.patterns.bulkhead import Bulkhead
from bitactor.patterns.cache import Cache
from bitactor.patterns.circuit_breaker import CircuitBreaker
from bitactor.patterns.error_handler import ErrorHandler
from bitactor.patterns.errors import (
    BatchFailed,
    BulkheadFull,
    CircuitOpen,
    RateLimited,
    Refused,
    TimedOut,
    TooFewAnswers,
)
from bitactor.patterns.fallback import Fallback
from bitactor.patterns.parallel import FailedItem, Fetched, Mapped, parallel_fetch, parallel_map, scatter_gather
from bitactor.patterns.rate_limit import RateLimit
from bitactor.patterns.retry import RetryPolicy
from bitactor.patterns.timeout import Timeout

__all__ = [
    "BatchFailed",
    "Batching",
    "Bulkhead",
    "BulkheadFull",
    "Cache",
    "Call",
    "CircuitBreaker",
    "CircuitOpen",
    "ErrorHandler",
    "FailedItem",
    "Fallback",
    "Fetched",
    "Mapped",
    "Policy",
    "PolicyState",
    "Proceed",
    "RateLimit",
    "RateLimited",
    "Refused",
    "RetryPolicy",
    "TimedOut",
    "Timeout",
    "TooFewAnswers",
    "parallel_fetch",
    "parallel_map",
    "scatter_gather",
]
