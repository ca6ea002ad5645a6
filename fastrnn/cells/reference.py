"""One step of a program on NumPy arrays, and its backward: matrix products, with the loops between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fastrnn.cells.program import Loop, Place, Program
from fastrnn.types import Array, Arrays

Fields = dict[Place, Array]


def dot(a: Array, b: Array) -> Array:
    return a @ b


class Reference:
    """A cell's step for one dtype; `compiled` turns a loop into a function."""

    def __init__(
        self,
        program: Program,
        compiled: Callable[[Loop], Callable[..., Arrays]],
        dot: Callable[[Array, Array], Array] = dot,
    ) -> None:
        self._program, self._dot = program, dot
        self._forward = [[compiled(loop) for loop in phase.forward] for phase in program.phases]
        self._backward = [compiled(phase.backward) for phase in program.phases]
        self._rows = [[program.products.index(g) for g in phase.gates] for phase in program.phases]
        self._made = {q: program.places_kept[operand] for q, operand in program.made.items()}

    def step(self, x: Array, state: Arrays, weights: Arrays, e: Sequence[Array]) -> tuple[Arrays, Arrays]:
        """Return the states after the step, and the data for backward.

        x is (B, I), the states before the step (B, H) each, weights (W, U, b, b_rec, p, R), and e in the order of the
        cell's inputs. R without rows means no projection; U with fewer columns than its operand means heads.
        """
        W, _, b, _, _, R = weights
        program, H = self._program, len(b) // len(self._program.gates)
        shape = len(x), H
        fields = self._given(state, weights, e)
        wx = self._dot(x, W.T) + b
        fields |= {Place("wx", g): part(wx, g, H) for g in range(len(program.gates))}
        means = 0
        for q, phase in enumerate(program.phases):
            for j in range(len(phase.means)):
                fields[Place("uh", j)] = mean(fields[Place("made", means + j)])
            means += len(phase.means)
            for j, row in enumerate(self._rows[q]):
                operand = self._operand(q, state, fields)
                U, b_rec = rows(weights[1], row, H), rows(weights[3], row, H)
                n = operand.shape[1] // U.shape[1]
                pairs = zip(heads(operand, n, 1), heads(U, n), strict=True)
                uh = joined([self._dot(a, own.T) for a, own in pairs], 1) + b_rec
                fields[Place("u", j)] = fields[Place("uh", j)] = uh
            for loop, function in zip(phase.forward, self._forward[q], strict=True):
                self._run(loop, function, fields, shape)
        after = tuple([fields[Place("next", k)] for k in range(len(state))])
        saved = (*[fields[place] for place in program.places_kept.values()], *after)
        return (self._dot(after[0], R.T), *after[1:]) if len(R) else after, saved

    def step_backward(
        self, dstate: Arrays, x: Array, state: Arrays, saved: Arrays, weights: Arrays, e: Sequence[Array]
    ) -> tuple[Array, Arrays, Arrays, list[Array]]:
        """Return dx and the gradients of the states before the step, the weights (summed over the batch), and e.

        d + name is the gradient of a scalar with respect to name.
        """
        W, U, R = weights[0], weights[1], weights[5]
        program, H, dot = self._program, len(W) // len(self._program.gates), self._dot
        shape = len(x), H
        fields = self._given(state, weights, e)
        kept = len(program.places_kept)
        fields |= dict(zip(program.places_kept.values(), saved[:kept], strict=True))
        fields |= {Place("next", k): a for k, a in enumerate(saved[kept:])}
        fields |= {Place("carry", k): d for k, d in enumerate(dstate) if k > 0}
        d, dU, db_rec, dR = dstate[0], np.zeros_like(U), np.zeros_like(weights[3]), R
        if len(R):
            d, dR = dot(d, R), dot(d.T, fields[Place("next", 0)])
        first, first_mean = len(program.order), len(program.order) + len(program.means)
        fields[Place("dout")] = fields[Place("total")] = d
        for q in range(len(program.phases) - 1, -1, -1):
            phase = program.phases[q]
            self._run(phase.backward, self._backward[q], fields, shape)
            first, first_mean = first - len(phase.gates), first_mean - len(phase.means)
            d = np.zeros_like(self._operand(q, state, fields))
            for j, row in enumerate(self._rows[q]):
                operand = self._operand(q, state, fields)
                du = self._du(fields, first + j)
                n = operand.shape[1] // U.shape[1]
                parts = heads(du, n, 1), heads(operand, n, 1), heads(rows(U, row, H), n)
                rows(dU, row, H)[:] = joined([dot(a.T, b) for a, b in zip(*parts[:2], strict=True)])
                rows(db_rec, row, H)[:] = du.sum(axis=0)
                d = d + joined([dot(a, own) for a, own in zip(parts[0], parts[2], strict=True)], 1)
            fields[Place("dout")] = d
            for j in range(len(phase.means)):
                fields[Place("dout", j)] = mean(fields[Place("da_rec", first_mean + j)])
        carry = [fields[Place("carry", k)] for k in range(len(state)) if k > 0 or program.carries_h]
        carry[:1] = [carry[0] + d] if program.carries_h else [d, *carry[:1]]
        da = np.hstack([fields[Place("da", g)] for g in range(len(program.gates))])
        dp = [fields[Place("dp", k)].sum(axis=0) for k in range(len(program.parameters))]
        dweights = (dot(da.T, x), dU, da.sum(axis=0), db_rec, np.hstack(dp) if dp else weights[4], dR)
        return dot(da, W), tuple(carry), dweights, [fields[Place("de", k)] for k in range(len(e))]

    def _given(self, state: Arrays, weights: Arrays, e: Sequence[Array]) -> Fields:
        H = len(weights[2]) // len(self._program.gates)
        fields = {Place("prev", k): s for k, s in enumerate(state)}
        fields |= {Place("p", k): rows(weights[4], k, H) for k in range(len(self._program.parameters))}
        return fields | {Place("e", k): a for k, a in enumerate(e)}

    def _operand(self, q: int, state: Arrays, fields: Fields) -> Array:
        return fields[self._made[q]] if q in self._made else state[0]

    def _du(self, fields: Fields, k: int) -> Array:
        program = self._program
        if program.split:
            return fields[Place("da_rec", k)]
        return fields[Place("da", program.gates.index(program.order[k]))]

    def _run(self, loop: Loop, function: Callable[..., Arrays], fields: Fields, shape: tuple[int, ...]) -> None:
        values = function(*[fields[place] for place in loop.loads.values()])
        dtype = fields[Place("prev", 0)].dtype
        for (place, _), value in zip(loop.stores, values, strict=True):
            whole = np.shape(value) == shape
            fields[place] = value if whole else np.broadcast_to(value, shape).astype(dtype, order="C")


def mean(a: Array) -> Array:
    """Return the mean of each row, repeated to the row's length."""
    return np.repeat(a.mean(axis=1, keepdims=True), a.shape[1], axis=1)


def part(a: Array, g: int, H: int) -> Array:
    """Return gate g of gates stacked along axis 1."""
    return a[:, g * H : (g + 1) * H].copy()


def heads(a: Array, n: int, axis: int = 0) -> list[Array]:
    """Return the n equal parts along an axis."""
    return [a] if n == 1 else [part.copy() for part in np.split(a, n, axis)]  # contiguous, as Numba requires


def joined(parts: list[Array], axis: int = 0) -> Array:
    """Join the parts: the inverse of `heads`."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis)


def rows(a: Array, g: int, H: int) -> Array:
    """Return gate g of gates stacked along axis 0."""
    return a[g * H : (g + 1) * H]
