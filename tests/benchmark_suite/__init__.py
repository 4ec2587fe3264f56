"""Measure the collector against a simulated Duo tenant, and print the results as Markdown tables.

    tests/benchmark                          all of it: some fifteen minutes
    tests/benchmark --only cost              some of it; --help lists the parts
    tests/benchmark --beside OTHER           another duo_collector.py, side by side
    tests/benchmark --picture backlog.svg    draws the drain of a backlog, too

The peers, on the same events from the same server in the same run:

(a) what one would write on Duo's own client (duo_client): page to the end, json.dumps, print;
(b) a floor: the same bytes over one kept-alive connection through json.loads, and nothing else;
(c) Duo Log Sync's policy, a page of 1,000 each 120 s (its documented minimum): computed, not run.

What takes CPU runs alone, the peers in turn, and of several rounds the median counts. What merely
waits for a limit or an answer runs side by side, collector and tenant on a common clock that is
several times as fast; the collector is unchanged, the sockets and signatures are real. The tenant
is always a process of its own.

A figure that misses its target is named on stderr. It is no error: the exit status is 0.
"""
