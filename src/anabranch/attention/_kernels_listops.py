"""ListOps expressions, drawn and evaluated in one pass; random numbers are addressed by seed, item and draw."""

import typing

import numpy as np
from numba import njit

FIRST_DIGIT, FIRST_OPERATOR, CLOSE = 2, 12, 16


@njit(cache=True)
@typing.no_type_check
def mix(x):
    """splitmix64's finalizer."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(cache=True)
@typing.no_type_check
def reduce_list(operator, values, count):
    """MIN, MAX, MED (integer part of the median) or SM (sum modulo 10) of the first ``count`` values."""
    if operator == 0:
        return values[:count].min()
    if operator == 1:
        return values[:count].max()
    if operator == 2:
        ordered = np.sort(values[:count])
        return (ordered[(count - 1) // 2] + ordered[count // 2]) // 2
    return values[:count].sum() % 10


@njit(cache=True)
@typing.no_type_check
def draw(seed, item, max_depth, max_args, min_length, max_length, tokens):
    """One expression of min_length < length < max_length into ``tokens``: its length and its value.

    Trees are drawn until one fits, each abandoned when it gets too long; -1 after a million trees.
    """
    operators = np.zeros(max_depth + 1, np.int64)
    missing = np.zeros(max_depth + 1, np.int64)
    counts = np.zeros(max_depth + 1, np.int64)
    values = np.zeros((max_depth + 1, max_args), np.int64)
    gamma = np.uint64(0x9E3779B97F4A7C15)
    state = mix(np.uint64(seed) * gamma + mix(np.uint64(item) + gamma))
    for _ in range(1_000_000):
        length, depth, result = 0, 0, -1
        while True:
            # The next node stands at depth + 1; it is a value when r > 0.25 or at the largest depth.
            state += gamma
            r = np.float64(mix(state) >> np.uint64(11)) * 2.0**-53
            if depth + 1 < max_depth and r <= 0.25:
                state += gamma
                operators[depth] = np.int64(mix(state) % np.uint64(4))
                state += gamma
                missing[depth] = 2 + np.int64(mix(state) % np.uint64(max_args - 1))
                counts[depth] = 0
                if length >= max_length - 2:
                    break
                tokens[length] = FIRST_OPERATOR + operators[depth]
                length += 1
                depth += 1
                continue
            state += gamma
            value = np.int64(mix(state) % np.uint64(10))
            if length >= max_length - 1:
                break
            tokens[length] = FIRST_DIGIT + value
            length += 1
            while depth > 0:
                values[depth - 1, counts[depth - 1]] = value
                counts[depth - 1] += 1
                missing[depth - 1] -= 1
                if missing[depth - 1] > 0:
                    break
                depth -= 1
                value = reduce_list(operators[depth], values[depth], counts[depth])
                if length >= max_length - 1:
                    length = max_length
                    break
                tokens[length] = CLOSE
                length += 1
            if length >= max_length:
                break
            if depth == 0:
                result = value
                break
        if result >= 0 and min_length < length < max_length:
            return length, result
    return -1, -1


@njit(cache=True)
@typing.no_type_check
def fill(seed, first, max_depth, max_args, min_length, max_length, tokens, lengths, labels):
    """Items ``first + i`` into row i; token 0 of a row is left for CLS."""
    for i in range(len(tokens)):
        length, value = draw(seed, first + i, max_depth, max_args, min_length, max_length, tokens[i, 1:])
        lengths[i] = length
        labels[i] = value
        if length < 0:
            return
        tokens[i, 1 + length :] = 0
