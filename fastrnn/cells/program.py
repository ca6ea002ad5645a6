"""Convert the graph of a cell's equations to loops over hidden units, from which C and machine code are generated.

A step runs in phases. Each multiplies its operand by the recurrent weights of its gates, or takes means of its operands
over the hidden units, and then runs a loop over hidden units; a phase may also have only the loop. Values passed
from one phase to a later one, or from forward to backward, are stored in kept fields. Backward runs the phases in
reverse order: the loop of phase q takes the gradients of the operands of phase q + 1, or in the last phase that of the
first state, and passes values on in pending fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from fastrnn.cells.graph import COMPARISONS, FUNCTIONS, JOINTS, Graph, Node, needed, reverse

#: Limits of the driver (src/fastrnn.h).
MAX_PHASES, MAX_PHASE_GATES, MAX_GATES, MAX_STATES, MAX_PARAMETERS, MAX_INPUTS = 8, 4, 8, 4, 16, 8
MAX_PHASE_MEANS = 4

#: Arrays of a tile whose fields are a block of units apart; in the others they are a whole row apart.
BLOCKS = ("wx", "uh", "dout")


class Place(NamedTuple):
    """Location of a value: an array of the tile, and the field or gate in it."""

    array: str
    field: int = 0


@dataclass
class Loop:
    """Loads, arithmetic and stores for each vector of units; stores in `training` are done only if fields are kept."""

    loads: dict[Node, Place] = field(default_factory=dict)
    stores: list[tuple[Place, Node]] = field(default_factory=list)
    training: set[Place] = field(default_factory=set)

    def values(self) -> list[Node]:
        """Return the computed and loaded values, in order."""
        return needed((node for _, node in self.stores), self.loads)

    def steps(self) -> Iterator[tuple[Node, str, tuple[Node, ...]]]:
        """Yield each value with its operation; a product used by only one sum is fused into it.

        "load" and "const" have no arguments, "fma" is a b + c, "fms" a b - c, "fnma" c - a b.
        """
        values = self.values()
        uses: dict[Node, int] = {}
        for node in values:
            for a in () if node in self.loads else node.args:
                uses[a] = uses.get(a, 0) + 1
        for _, node in self.stores:
            uses[node] = uses.get(node, 0) + 1
        fused: set[int] = set()
        chosen: dict[int, tuple[str, tuple[Node, ...]]] = {}
        for node in values:
            if node in self.loads:
                chosen[node.number] = ("load", ())
            elif node.op in ("add", "sub"):
                a, b = node.args
                single = [m.op == "mul" and m not in self.loads and uses[m] == 1 for m in (a, b)]
                if single[0]:
                    chosen[node.number] = ("fma" if node.op == "add" else "fms", (*a.args, b))
                    fused.add(a.number)
                elif single[1]:
                    chosen[node.number] = ("fma" if node.op == "add" else "fnma", (*b.args, a))
                    fused.add(b.number)
                else:
                    chosen[node.number] = (node.op, node.args)
            else:
                chosen[node.number] = (node.op, node.args)
        for node in values:
            if node.number not in fused:
                yield (node, *chosen[node.number])


@dataclass
class Phase:
    """A product with its gates, or some means; their operands; and the loops around it."""

    operands: tuple[Node, ...] = ()  # one for a product, one for each mean
    gates: tuple[str, ...] = ()
    means: tuple[Node, ...] = ()
    forward: list[Loop] = field(default_factory=list)
    backward: Loop = field(default_factory=Loop)


class Program:
    """A traced cell, cut into phases."""

    def __init__(
        self,
        graph: Graph,
        gates: tuple[str, ...],
        states: tuple[str, ...],
        parameters: tuple[str, ...],
        inputs: tuple[str, ...],
        after: tuple[Node, ...],
    ) -> None:
        self.graph, self.after = graph, after
        self.gates, self.states, self.parameters, self.inputs = gates, states, parameters, inputs
        forward = needed(after)
        self._u = {node.name: node for node in forward if node.op == "u"}
        self._x = {node.name: node for node in forward if node.op == "x"}
        self.uses: dict[Node, list[Node]] = {}
        for node in forward:
            for a in node.args:
                self.uses.setdefault(a, []).append(node)
        self.products = tuple([g for g in gates if g in self._u])
        self.apart = frozenset(g for g in self.products if not self._joined(g))
        self.phases = self._phases(forward)
        self.phase_of = {self._u[g]: q for q, phase in enumerate(self.phases) for g in phase.gates}
        self.phase_of |= {mean: q for q, phase in enumerate(self.phases) for mean in phase.means}
        self.means = [mean for phase in self.phases for mean in phase.means]
        #: Whether units are independent, so that the kernels can run a sequence unit by unit.
        self.scans = len(self.phases) == 1 and not self.products and not inputs
        #: Phase -> the computed operand of its products, stored in a kept field.
        self.made = {q: operand for q, _, operand in self._made_operands() if self.phases[q].gates}
        #: The gates with a product, in the order of the phases.
        self.order = tuple([g for phase in self.phases for g in phase.gates])
        #: Whether the gradients of W x + b and U h + b_rec are separate arrays.
        self.split = bool(self.apart) or self.order != gates or bool(self.means)
        self._ready = self._when_ready(forward)
        seeds = [(node, graph.node("dstate", (), k)) for k, node in enumerate(after)]
        seeds += [(operand, graph.node("doperand", (), (q, j))) for q, j, operand in self._made_operands()]
        self.adjoints = reverse(graph, seeds)
        self.carries_h = self._carry(0) is not None
        first = graph.node("state", (), states[0])
        #: Whether the first state may be projected to other units: only the first phase's product reads it.
        self.projects = (
            bool(self.products)
            and self.phases[0].gates == self.order
            and not self.carries_h
            and all(node.op == "u" for node in self.uses.get(first, ()))
        )
        self._keep(forward)
        self._write_forward()
        self._write_backward()

    def _joined(self, gate: str) -> bool:
        """Return whether x and u of a gate are used only in their sum."""
        u, x = self._u[gate], self._x.get(gate)
        return (
            x is not None
            and len(self.uses.get(u, ())) == 1
            and len(self.uses.get(x, ())) == 1
            and (self.uses[u][0] is self.uses[x][0] and self.uses[u][0].op == "add")
        )

    def _is_first_state(self, node: Node) -> bool:
        return node.op == "state" and node.name == self.states[0]

    def _made_operands(self) -> list[tuple[int, int, Node]]:
        """Return the computed operands, by phase and position: all except the first state in phase 0."""
        return [
            (q, j, operand)
            for q, phase in enumerate(self.phases)
            for j, operand in enumerate(phase.operands)
            if q > 0 or not self._is_first_state(operand)
        ]

    def _depth(self, operand: Node) -> int:
        """Return the length of the longest chain of joints before this operand."""
        return max((1 + self._depth(node.args[0]) for node in needed([operand]) if node.op in JOINTS), default=0)

    def _phases_of_means(self, forward: list[Node]) -> list[tuple[int, Phase]]:
        """Return phases of means with their depth, as late as possible, so that many share a phase."""
        joints = [node for node in forward if node.op in JOINTS]
        late = {node: self._depth(node.args[0]) for node in joints}
        last = max(late.values(), default=0)
        late |= dict.fromkeys([node for node in joints if node.op == "mean"], last)
        for node in reversed(joints):
            for before in needed([node.args[0]]):
                if before.op == "mean":
                    late[before] = min(late[before], late[node] - 1)
        phases = []
        for depth in sorted(set(late.values())):
            means = [node for node in joints if node.op == "mean" and late[node] == depth]
            for k in range(0, len(means), MAX_PHASE_MEANS):
                some = tuple(means[k : k + MAX_PHASE_MEANS])
                phases.append((depth, Phase(tuple([mean.args[0] for mean in some]), (), some)))
        return phases

    def _phases(self, forward: list[Node]) -> list[Phase]:
        operands: dict[Node, list[str]] = {}
        for g in self.products:
            operands.setdefault(self._u[g].args[0], []).append(g)
        ordered = sorted(operands, key=lambda n: (self._depth(n), not self._is_first_state(n), n.number))
        by_depth = [
            (self._depth(operand), Phase((operand,), tuple(operands[operand][k : k + MAX_PHASE_GATES])))
            for operand in ordered
            for k in range(0, len(operands[operand]), MAX_PHASE_GATES)
        ]
        by_depth += self._phases_of_means(forward)
        phases = [phase for _, phase in sorted(by_depth, key=lambda pair: pair[0])]  # products first at equal depth
        if not ordered or not phases[0].gates or not self._is_first_state(ordered[0]):
            phases.insert(0, Phase())  # computes the first operand, or is the only phase
        if len(phases) > MAX_PHASES:
            raise ValueError(
                f"the equations need {len(phases)} products with different operands, or means, one after another; "
                f"expected at most {MAX_PHASES}"
            )
        return phases

    def _when_ready(self, nodes: Iterable[Node]) -> dict[Node, int]:
        """Return the first phase in which each value can be computed."""
        ready: dict[Node, int] = {}
        for node in nodes:
            own = self.phase_of.get(node, 0)
            ready[node] = max([own, *[ready[a] for a in node.args if node.op not in JOINTS]])
        return ready

    def _hangs_on_joint(self, node: Node) -> bool:
        return any(n.op in JOINTS for n in needed([node]))

    def _carry(self, state: int) -> Node | None:
        """Return a state's gradient without the part through products; for the first state the driver adds that."""
        node = self.graph.node("state", (), self.states[state])
        return self.adjoints.get(node)

    def is_pending(self, place: Place) -> bool:
        """Return whether this field is passed from one backward loop to another."""
        return place.array == "carry" and place.field >= len(self.states)

    def same_for_all(self, nodes: Iterable[Node]) -> set[Node]:
        """Return the values equal for every unit: means, gradients of their operands, and functions of these."""
        found: set[Node] = set()
        for node in needed(nodes):
            of_mean = node.op == "doperand" and bool(self.phases[node.name[0]].means)
            follows = bool(node.args) and node.op != "u" and found.issuperset(node.args)
            if node.op in ("mean", "const") or of_mean or follows:
                found.add(node)
        return found if any(node.op != "const" for node in found) else set()

    def first_product(self, q: int) -> int:
        """Return the number of products before phase q."""
        return sum(len(phase.gates) for phase in self.phases[:q])

    def places(self, loop: Loop, q: int) -> list[Place]:
        """Return all places that a loop of phase q reads and writes, without duplicates.

        "u" is the sum of a product and its bias, "total" the sum of the first state's gradients from the next step and
        from y.
        """
        found: dict[Place, None] = {}
        for place in [loop.loads[node] for node in loop.values() if node in loop.loads]:
            if place.array == "total":
                found |= {Place("carry"): None, Place("dout"): None}
            elif place.array == "u":
                found |= {Place("uh", place.field): None, Place("b_rec", self.first_product(q) + place.field): None}
            else:
                found[place] = None
        return list(found | {place: None for place, _ in loop.stores})

    def shape(self) -> dict[str, int | list[int]]:
        """Return the drivers' description of a cell: the fields of frnn_cell (src/fastrnn.h), by name."""
        fields = {q: self.places_kept[operand].field for q, operand in self.made.items()}
        return {
            "gates": len(self.gates),
            "states": len(self.states),
            "parameters": len(self.parameters),
            "inputs": len(self.inputs),
            "phases": len(self.phases),
            "phase_gates": [len(phase.gates) for phase in self.phases],
            "operand": [fields.get(q, -1) for q in range(len(self.phases))],
            "phase_means": [len(phase.means) for phase in self.phases],
            "added": [self.order.index(g) if g in self.products and g not in self.apart else -1 for g in self.gates],
            "scans": int(self.scans),
            "split": int(self.split),
            "carries_h": int(self.carries_h),
            "kept": len(self.kept),
            "kept_same": len(self.kept_same),
            "pending": self.pending,
        }

    # Kept values ------------------------------------------------------------------------------------------------------

    def _worth_keeping(self, node: Node) -> bool:
        """Return whether reloading a value is cheaper than recomputing it."""
        if node.op == "x" or node.op in JOINTS:
            return True
        if node.op == "add" and {a.op for a in node.args} == {"x", "u"}:
            return True
        return node.op in FUNCTIONS and not any(self._index_of_state(a) is not None for a in node.args)

    def _index_of_state(self, node: Node) -> int | None:
        """Return the index of the next state that a value is, or None."""
        return next((k for k, after in enumerate(self.after) if after is node), None)

    def _keep(self, forward: list[Node]) -> None:
        known = set(forward)
        #: Fields that every step writes, training or not: operands, and values that a later phase needs.
        handed: dict[Node, None] = dict.fromkeys(self.made.values())
        for q in reversed(range(len(self.phases))):  # values passed on from phase q may need earlier values
            made = [node for node in handed if self._ready[node] == q]
            handed |= dict.fromkeys(self._across([*self._roots(q), *made], q))
        kept = dict(handed)
        stack = [*self.adjoints.values()]
        seen: set[int] = set()
        while stack:
            node = stack.pop()
            if node.number in seen:
                continue
            seen.add(node.number)
            if node in kept or self._index_of_state(node) is not None:
                continue
            if node in known and self._worth_keeping(node):
                kept[node] = None
            else:
                stack.extend(node.args)
        same = self.same_for_all(kept) - set(self.made.values())  # a product reads its operand from a kept field
        #: Values in kept fields; and values equal for every unit, of which one vector is kept.
        self.kept = sorted(kept.keys() - same, key=lambda n: n.number)
        self.kept_same = sorted(kept.keys() & same, key=lambda n: n.number)
        self.places_kept = {node: Place("kept", k) for k, node in enumerate(self.kept)}
        self.places_kept |= {node: Place("same", k) for k, node in enumerate(self.kept_same)}
        self.handed = frozenset(handed)

    def _roots(self, q: int) -> list[Node]:
        """Return what phase q must always compute: operands of later phases, and in the last phase the states."""
        roots = [operand for _, _, operand in self._made_operands() if self._ready[operand] == q]
        return roots + (list(self.after) if q == len(self.phases) - 1 else [])

    def _across(self, roots: Iterable[Node], q: int) -> list[Node]:
        """Return the values that phases before q must pass on for these roots."""
        found: dict[int, Node] = {}
        stack = list(roots)
        while stack:
            node = stack.pop()
            early = self._ready[node] < q and self._hangs_on_joint(node)
            if early and (node.op in JOINTS or node.op in FUNCTIONS):
                found[node.number] = node
            elif node.op not in JOINTS:
                stack.extend(node.args)
        return list(found.values())

    def _computed_in(self, roots: Iterable[Node], q: int) -> set[Node]:
        """Return what phase q computes for these roots, without the values it reads from kept fields."""
        found: set[Node] = set()
        stack = list(roots)
        while stack:
            node = stack.pop()
            if node not in found and not (node in self.handed and self._ready[node] < q):
                found.add(node)
                stack.extend(node.args if node.op not in JOINTS else ())
        return found

    # Loops ----------------------------------------------------------------------------------------------------------

    def _leaves(self, nodes: Iterable[Node]) -> Iterator[tuple[Node, Place]]:
        """Yield the places of given values, the same in every loop."""
        arrays = {"state": ("prev", self.states), "parameter": ("p", self.parameters), "input": ("e", self.inputs)}
        for node in nodes:
            if node.op in arrays:
                array, names = arrays[node.op]
                yield node, Place(array, names.index(node.name))

    def _write_forward(self) -> None:
        written: set[Node] = set()
        last = len(self.phases) - 1
        for q, phase in enumerate(self.phases):
            loop = Loop()
            roots = self._roots(q)
            inside = self._computed_in(roots, q)
            stores: list[tuple[Place, Node]] = []
            if q == last:
                stores += [(Place("next", k), node) for k, node in enumerate(self.after)]
            made = [mean.args[0] for mean in self.means]
            stores += [(Place("made", k), node) for k, node in enumerate(made) if self._ready[node] == q]
            for node, place in self.places_kept.items():
                early = node in self.handed or self._hangs_on_joint(node)
                here = self._ready[node] == q if early else node in inside or q == last
                if node not in written and here:
                    written.add(node)
                    stores.append((place, node))
                    if node not in self.handed and place.array == "kept":
                        loop.training.add(place)
            loop.stores = stores
            everything = needed(node for _, node in stores)
            loop.loads.update(self._leaves(everything))
            for node in everything:
                if node.op == "x":
                    loop.loads[node] = Place("wx", self.gates.index(node.name))
                if node.op == "u" and self.phase_of[node] == q:
                    place = Place("u" if node.name in self.apart else "uh", phase.gates.index(node.name))
                    loop.loads[node] = place
                if node.op == "mean" and self.phase_of[node] == q:
                    loop.loads[node] = Place("uh", next(j for j, mean in enumerate(phase.means) if mean is node))
            for node, place in self.places_kept.items():
                if node in self.handed and self._ready[node] < q:
                    loop.loads[node] = place
            phase.forward = halves(loop) if q == last and not self.scans else [loop]

    def _when_known(self, nodes: Iterable[Node]) -> dict[Node, int]:
        """Return the phase of the backward loop in which each value of the reverse pass is first known."""
        last = len(self.phases) - 1
        known: dict[Node, int] = {}
        for node in nodes:
            own = node.name[0] - 1 if node.op == "doperand" else last
            known[node] = min([own, *[known[a] for a in node.args]])
        return known

    def _write_backward(self) -> None:
        zero = self.graph.constant(0)
        outputs: list[tuple[Place, Node]] = []
        for k in range(len(self.states)):
            carry = self._carry(k)
            if carry is not None or k > 0 or self.scans:
                outputs.append((Place("carry", k), carry if carry is not None else zero))
        for k, g in enumerate(self.gates):
            x = self._x.get(g)
            outputs.append((Place("da", k), zero if x is None else self.adjoints.get(x, zero)))
        if self.split:
            for k, g in enumerate(self.order):
                outputs.append((Place("da_rec", k), self.adjoints.get(self._u[g], zero)))
        for k, mean in enumerate(self.means):
            outputs.append((Place("da_rec", len(self.order) + k), self.adjoints.get(mean, zero)))
        for array, op, names in (("dp", "parameter", self.parameters), ("de", "input", self.inputs)):
            for k, name in enumerate(names):
                outputs.append((Place(array, k), self.adjoints.get(self.graph.node(op, (), name), zero)))

        everything = needed(node for _, node in outputs)
        known = self._when_known(everything)
        adjoint = {node for node in everything if node.op in ("dstate", "doperand")}
        for node in everything:
            if any(a in adjoint for a in node.args):
                adjoint.add(node)
        pending: list[Node] = []
        for place, node in outputs:
            self.phases[known[node]].backward.stores.append((place, node))
        for q, phase in enumerate(self.phases):
            loop = phase.backward
            stack, seen = [node for _, node in loop.stores], set()
            while stack:  # values known to an earlier loop are passed on at the last sum or product that it knows
                node = stack.pop()
                if node in seen:
                    continue
                seen.add(node)
                if node in adjoint and known[node] > q:
                    if all(node is not other for other in pending):
                        pending.append(node)
                        self.phases[known[node]].backward.stores.append((self._pending_place(pending, node), node))
                    loop.loads[node] = self._pending_place(pending, node)
                elif node not in loop.loads:
                    stack.extend(node.args)
            inside = needed(node for _, node in loop.stores)
            loop.loads.update(self._leaves(inside))
            for node in inside:
                state = self._index_of_state(node)
                if node.op == "dstate":
                    first = Place("total" if self.scans else "dout")
                    loop.loads.setdefault(node, Place("carry", node.name) if node.name else first)
                elif node.op == "doperand" and node.name[0] == q + 1:
                    loop.loads[node] = Place("dout", node.name[1])
                elif node in self.places_kept:
                    loop.loads[node] = self.places_kept[node]
                elif state is not None:
                    loop.loads.setdefault(node, Place("next", state))
        self.pending = len(pending)

    def _pending_place(self, pending: list[Node], node: Node) -> Place:
        return Place("carry", len(self.states) + next(k for k, other in enumerate(pending) if other is node))


def halves(loop: Loop) -> list[Loop]:
    """Split the loop in two if the first state is a product with a function of a next state, such as tanh(c).

    The chain of operations from the gates through both functions exceeds a core's out-of-order window. The first half
    stores the other factor in the place of the first state, where the second half reads it.
    """
    states = {node: place for place, node in loop.stores if place.array == "next"}
    first = next((node for node, place in states.items() if place.field == 0), None)
    if first is None or first.op != "mul" or first in loop.loads:
        return [loop]
    for function, other in (first.args, first.args[::-1]):
        argument = function.args[0] if len(function.args) == 1 and function.op in FUNCTIONS else None
        if argument is None or argument not in states or argument is first or other.op in COMPARISONS:
            continue
        if any(node is first or node is function for place, node in loop.stores if place.array != "next"):
            continue
        place, at = states[argument], Place("next", 0)
        rest = [(p, n) for p, n in loop.stores if p != at]
        if any(n is function or n is first for n in Loop(loop.loads, rest).values()):
            continue
        begin = Loop(loop.loads, [(at, other), *rest], loop.training)
        return [begin, Loop({other: at, argument: place}, [(at, first)])]
    return [loop]
