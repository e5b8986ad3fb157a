"""Event recursion of a pipeline: every stage runs its list in order, every action waits for its inputs."""

import typing

import numpy as np
from numba import njit


@njit(cache=True)
@typing.no_type_check
def play(kinds, micro, chunk, chunks, micro_batches, forward_s, backward_s, recompute_s, weights_s, send_s, early):
    """``begin``, ``end`` ``[stages, actions]``; NaN for padding. Returns the number of actions that could run."""
    stages, actions = kinds.shape
    begin, end = np.full((stages, actions), np.nan), np.full((stages, actions), np.nan)
    virtual = stages * chunks
    done_f = np.full((virtual, micro_batches), np.nan)
    done_b = np.full((virtual, micro_batches), np.nan)
    at, free = np.zeros(stages, np.int64), np.zeros(stages)
    ran, moved = 0, True
    while moved:
        moved = False
        for forward in (True, False):  # a sweep down finds ready forwards, a sweep up ready backwards
            for turn in range(stages):
                k = turn if forward else stages - 1 - turn
                while at[k] < actions:
                    a = at[k]
                    kind, m = kinds[k, a], micro[k, a]
                    if kind == 3:
                        at[k] = actions
                        break
                    v = chunk[k, a] * stages + k
                    ready, spent = 0.0, 0.0
                    if kind == 0:
                        spent = forward_s[v]
                        if v > 0:
                            ready = done_f[v - 1, m] + send_s[v - 1]
                    elif kind == 4:
                        spent, ready = weights_s[v], done_b[v, m]
                    elif kind == 1 or not early:
                        ready = done_b[v + 1, m] + send_s[v] if v < virtual - 1 else done_f[v, m]
                    if kind == 1:
                        spent = backward_s[v]
                        ready = max(ready, done_f[v, m])
                    elif kind == 2:
                        spent = recompute_s[v]
                        ready = max(ready, done_f[v, m])
                    if np.isnan(ready) or (np.isnan(done_f[v, m]) and kind != 0):
                        break
                    begin[k, a] = max(free[k], ready)
                    end[k, a] = begin[k, a] + spent
                    free[k] = end[k, a]
                    if kind == 0:
                        done_f[v, m] = end[k, a]
                    elif kind == 1:
                        done_b[v, m] = end[k, a]
                    at[k] += 1
                    ran += 1
                    moved = True
    return begin, end, ran
