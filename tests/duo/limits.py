"""Rate limits of several shapes."""

import collections
import math
import threading
from typing import Dict

from .rules import Rules


class RateLimiter:
    """Counts requests per key, in the shape that the rules ask for."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.taken: Dict[str, collections.deque] = collections.defaultdict(collections.deque)
        self.full_at: Dict[str, float] = collections.defaultdict(float)
        self.refused_until: Dict[str, float] = collections.defaultdict(float)
        self.others_at: Dict[str, float] = {}  # of the last request of another client

    def wait_s(self, key: str, now_s: float, rules: Rules) -> float:
        """0 when the request is let through, else s until one would be."""
        if rules.rate_limit is None:
            return 0.0
        with self.lock:
            self._let_others_ask(key, now_s, rules, rules.rate_limit)
            return self._wait_s(key, now_s, rules, rules.rate_limit)

    def _let_others_ask(self, key: str, now_s: float, rules: Rules, limit: int) -> None:
        """The requests of the account's other clients up to now, evenly spread."""
        if not rules.other_clients:
            self.others_at.pop(key, None)
            return
        between_s = 60 / rules.other_clients
        remembered_s = max(rules.rate_window_s, rules.limit_lasts_s)
        at_s = max(self.others_at.get(key, -math.inf), now_s - remembered_s) + between_s
        while at_s <= now_s:
            self._wait_s(key, at_s, rules, limit)
            self.others_at[key] = at_s
            at_s += between_s

    def _wait_s(self, key: str, now_s: float, rules: Rules, limit: int) -> float:
        if rules.limit_lasts_s and now_s < self.refused_until[key]:
            return self.refused_until[key] - now_s
        if rules.rate_shape == "bucket":
            wait_s = self._bucket_wait_s(key, now_s, rules, limit)
        else:
            wait_s = self._window_wait_s(key, now_s, rules, limit)
        if wait_s and rules.limit_lasts_s:
            self.refused_until[key] = now_s + rules.limit_lasts_s
            return rules.limit_lasts_s
        return wait_s

    def _window_wait_s(self, key: str, now_s: float, rules: Rules, limit: int) -> float:
        window_s, taken = rules.rate_window_s, self.taken[key]
        start_s = now_s - (now_s % window_s if rules.rate_shape == "fixed" else window_s)
        while taken and taken[0] <= start_s:
            taken.popleft()
        wait_s = 0.0
        if len(taken) >= limit:
            leaves_s = start_s if rules.rate_shape == "fixed" else taken[-limit]
            wait_s = leaves_s + window_s - now_s
        if not wait_s or rules.count_refused:
            taken.append(now_s)
        return wait_s

    def _bucket_wait_s(self, key: str, now_s: float, rules: Rules, limit: int) -> float:
        """The bucket holds `limit` requests and refills evenly over the window."""
        refill_s = rules.rate_window_s / limit
        full_at = max(self.full_at[key], now_s) + refill_s
        wait_s = full_at - now_s - rules.rate_window_s
        wait_s = wait_s if wait_s > 1e-6 else 0.0  # a sum of floats, not a wait
        if not wait_s or rules.count_refused:
            self.full_at[key] = full_at
        return wait_s
