"""Items to rank another item against: drawn by weight from those that are not taken, block by block of users."""

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float64]
Items = NDArray[np.int64]
Mask = NDArray[np.bool_]
ROUNDS = 8


def distinct(rng: np.random.Generator, weight_I: Weights, taken_BI: Mask, count: int) -> tuple[Items, Mask]:
    """One draw after the other without replacement: items (B, count), and which count where too few are free.

    Most rows are served by drawing with replacement and leaving out what came before, which costs nothing a catalogue;
    the others by the `count` largest of log weight + Gumbel noise over all items. Both have the same law.
    """
    found_BN = np.zeros((len(taken_BI), count), np.int64)
    have_B = np.zeros(len(taken_BI), np.int64)
    free_BI: Mask = ~taken_BI & (weight_I > 0)
    left_B, edges_I = np.arange(len(taken_BI)), weight_I.cumsum()
    met_BI: Mask = np.logical_not(free_BI)
    for _ in range(ROUNDS):
        if not len(left_B):
            break
        drawn_BN = np.searchsorted(edges_I, rng.random((len(left_B), 2 * count)) * edges_I[-1], side="right")
        for place, row in enumerate(left_B):
            fresh_N = drawn_BN[place][~met_BI[row, drawn_BN[place]]]
            fresh_N = fresh_N[np.sort(np.unique(fresh_N, return_index=True)[1])][: count - have_B[row]]
            found_BN[row, have_B[row] : have_B[row] + len(fresh_N)] = fresh_N
            have_B[row] += len(fresh_N)
            met_BI[row, fresh_N] = True
        left_B = left_B[have_B[left_B] < np.minimum(count, free_BI[left_B].sum(1))]
    for row in left_B:
        open_N = np.flatnonzero(~met_BI[row])
        order_N = np.argsort(-(np.log(weight_I[open_N]) + rng.gumbel(size=len(open_N))), kind="stable")
        fresh_N = open_N[order_N[: count - have_B[row]]]
        found_BN[row, have_B[row] : have_B[row] + len(fresh_N)] = fresh_N
        have_B[row] += len(fresh_N)
    return found_BN, np.arange(count) < have_B[:, None]


def with_replacement(rng: np.random.Generator, weight_I: Weights, taken_BI: Mask, count: int) -> tuple[Items, Mask]:
    """Draws with replacement, taken items drawn again: items (B, count), and which were not drawn before."""
    edges_I = weight_I.cumsum()
    free_BI = ~taken_BI & (weight_I > 0)
    found_BN = np.zeros((len(taken_BI), count), np.int64)
    open_BN = np.broadcast_to(free_BI.any(axis=1, keepdims=True), found_BN.shape).copy()
    valid_BN = open_BN.copy()
    while open_BN.any():
        row_N, place_N = np.nonzero(open_BN)
        drawn_N = np.searchsorted(edges_I, rng.random(len(row_N)) * edges_I[-1], side="right")
        found_BN[row_N, place_N] = drawn_N
        open_BN[row_N, place_N] = ~free_BI[row_N, drawn_N]
    order_BN = np.argsort(found_BN, axis=1, kind="stable")
    sorted_BN = np.take_along_axis(found_BN, order_BN, 1)
    again_BN = np.zeros_like(open_BN)
    np.put_along_axis(again_BN, order_BN, np.diff(sorted_BN, axis=1, prepend=-1) == 0, 1)
    return found_BN, valid_BN & ~again_BN
