"""How many answers a machine writes at once, over time."""

import numpy as np
from jaxtyping import Float64

from anabranch.serving.cluster import ServingResult
from anabranch.serving.requests import RequestTable


def decode_occupancy(result: ServingResult, requests: RequestTable) -> Float64[np.ndarray, " most_plus_1"]:
    """Seconds, over all machines, in which a machine had so many answers under way (index 0: while another machine worked).

    An answer is under way from the start of its decoding to its last token, also while it is preempted. From the first arrival
    to the last token; requests that were not finished do not count. O(n log n).
    """
    rows = np.flatnonzero(result.finished & (requests.output_tokens > 1))
    end = float((requests.arrival_s + result.e2e_s)[rows].max()) if len(rows) else 0.0
    machines = len(result.busy_s)
    begin = float(requests.arrival_s[0])
    spent = np.zeros(len(rows) + 1)
    for machine in range(machines):
        own = rows[result.target[rows] == machine]
        first = requests.arrival_s[own] + result.ttft_s[own] + result.second_token_gap_s[own]
        last = requests.arrival_s[own] + result.e2e_s[own]
        times = np.concatenate([[begin], first, last, [max(begin, end)]])
        change = np.concatenate([[0], np.ones(len(own), np.int64), -np.ones(len(own), np.int64), [0]])
        order = np.argsort(times, kind="stable")
        np.add.at(spent, np.cumsum(change[order])[:-1], np.diff(times[order]))
    return np.trim_zeros(spent, "b")
