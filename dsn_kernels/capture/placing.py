"""Where values live: which of them share a map, so that joining, adding and skipping move no data."""

from __future__ import annotations

from typing import NamedTuple

from ..graph import KEEP_ZERO, Graph
from .values import Program, Value

# What lies within another's map or needs one of its own; and what may be the first part of one.
_WHOLE = ("slice", "where", "dense_block")
_FIRST = ("stem", "transition", "widen")


class Place(NamedTuple):
    """Some channels of a map, from ``offset`` on."""

    map: int
    offset: int = 0


class Places:
    """The place of every value that is a map, worked out from the last value to the first.

    What is joined is written side by side, a sum onto one of its terms, what a gate chooses onto that which stands
    where it is shut: wherever nobody reads later what is overwritten. Else it is copied.

    Attributes:
        of: the place of each value.
        vectors: those that are a pooled vector alone.
        accumulated: the sum that a term is added to as it is computed.
        logits: the first logit of each value that leaves as logits, and has no map.
        until: when a value is written over; those that are not never are.
        gated: values that lie, while a gate is open, where something else stands that is needed while it is shut.
    """

    def __init__(self, program: Program, graph: Graph) -> None:
        self.program, self.graph = program, graph
        self.users = program.users()
        self.at = {value: i for i, value in enumerate(program.values)}
        self.of: dict[Value, Place] = {}
        self.accumulated: dict[Value, Value] = {}
        self.logits: dict[Value, int] = {}
        self.until: dict[Value, int] = {}
        self.gated: set[Value] = set()
        self.vectors = self._find_logits()
        for value in program.inputs:
            self.of[value] = self._new(value)
        for value in reversed(program.values):
            if self.is_map(value):
                self._place(value)

    def is_map(self, value: Value) -> bool:
        return (
            value not in self.vectors
            and value not in self.logits
            and value.op not in ("open", "lstm", "slice", "input")
        )

    def place(self, value: Value) -> Place:
        """Of a value, or of the part of one."""
        if value.op == "slice":
            map, offset = self.place(value.source)
            return Place(map, offset + int(value.number))
        return self.of[value]

    def whole(self, value: Value) -> bool:
        """Whether it has a map of its own."""
        map, offset = self.place(value)
        return offset == 0 and self.graph.maps[map].channels == value.channels

    def lacks(self, value: Value, reader: Value) -> bool:
        """Whether the map of a value may have channels without data when it is read."""
        return any(v.may_lack for v in self._beside(value, reader))

    def alone(self, value: Value, reader: Value) -> bool:
        """Whether the map of a value holds nothing else when it is read."""
        _, offset = self.place(value)
        ends = (p.offset + v.channels for v in self._beside(value, reader) for p in [self.of[v]])
        return offset == 0 and max(ends) == value.channels

    def _beside(self, value: Value, reader: Value) -> list[Value]:
        """What lies in the map of a value when it is read."""
        map, _ = self.place(value)
        return [v for v, p in self.of.items() if p.map == map and self.at[v] < self.at[reader]]

    def _find_logits(self) -> set[Value]:
        """The vectors, among them those that leave as logits: of linear maps, and what a gate chooses between two."""
        chosen = {v for v in self.program.outputs if v.op == "where" and not self.users[v]}
        while True:
            vectors = self._find_vectors(chosen)
            kept = {v for v in chosen if all(self._leaves_by(term, v, vectors) for term in v.inputs[1:])}
            if kept == chosen:
                break
            chosen = kept
        count = 0
        for value in self.program.outputs:
            linear = value.op == "head" or (value in vectors and value.op != "mean")
            if value not in self.logits and (value in chosen or linear):
                for leaving in (value, *(value.inputs[1:] if value in chosen else ())):
                    self.logits[leaving] = count
                count += value.channels
        return vectors

    def _leaves_by(self, term: Value, where: Value, vectors: set[Value]) -> bool:
        """Whether it is a linear map that leaves by a gate's choice and by nothing else."""
        alone = self.users[term] == [where] and where.inputs.count(term) == 1 and term not in self.program.outputs
        return alone and term in vectors and term.op != "mean"

    def _find_vectors(self, chosen: set[Value]) -> set[Value]:
        """Values of one number for each channel that are only multiplied with, or leave by one of the gates' choices
        ``chosen``: they need no map."""
        found = {value for value in self.program.values if self._may_be_vector(value)}
        while True:
            kept = {v for v in found if all(u in chosen or self._reads_vector(u, v, found) for u in self.users[v])}
            if kept == found:
                return found
            found = kept

    def _may_be_vector(self, value: Value) -> bool:
        linear = value.op == "linear" or is_point(value)
        if value in self.program.outputs and not linear:
            return False
        return value.is_vector and (value.op == "mean" or (linear and value.before is None and value.source.is_vector))

    def _reads_vector(self, user: Value, value: Value, vectors: set[Value]) -> bool:
        if user.op == "scale":
            return user.inputs[0] is not value
        return user.op in ("open", "lstm") or (user in vectors and user.op != "mean")

    def _new(self, value: Value) -> Place:
        height, width = value.shape[1:] or (1, 1)
        return Place(self.graph.map(value.channels, height, width))

    def _place(self, value: Value) -> None:
        if value not in self.of:
            self.of[value] = (self._joined_already(value) if value.op == "cat" else None) or self._new(value)
        if value.op in ("cat", "dense_block"):
            self._join(value)
        elif value.op == "update":
            self._update(value)
        elif value.op == "add":
            self._add(value)
        elif value.op == "where":
            self._choose(value)
        elif value.op in ("activation", "affine", "scale") and value not in self.accumulated:
            place = self.of[value]
            if not self._take(value.source, place, value, self.at[value]) and self.of.get(value.source) == place:
                self.of[value] = self._new(value)

    def _joined_already(self, value: Value) -> Place | None:
        """Where all that is joined lies side by side because a longer list of it is joined."""
        places = [self.of.get(part) for part in value.inputs]
        first, run = places[0], 0
        for part, place in zip(value.inputs, places, strict=True):
            if first is None or place != (first.map, first.offset + run) or not self._in_order(value.inputs):
                return None
            run += part.channels
        until = min(self._ends(part) for part in value.inputs)
        if not self._lasts(value, until):
            return None
        self.until[value] = until
        return first

    def _ends(self, value: Value) -> int:
        """When a value is written over, or behind the last."""
        return self.until.get(value, len(self.program.values))

    def _in_order(self, parts: list[Value]) -> bool:
        """Whether each is written later than those before it, as a map is filled."""
        return all(self._written(a) < self._written(b) for a, b in zip(parts, parts[1:], strict=False))

    def _written(self, value: Value) -> int:
        """When its place is first written: by the earliest of the values that share it."""
        place = self.of.get(value)
        return min([self.at[value], *(self.at[v] for v, p in self.of.items() if place is not None and p == place)])

    def _join(self, value: Value) -> None:
        map, offset = self.of[value]
        last, until = -1, self._ends(value)
        for part in value.inputs:
            fits = part.op not in _WHOLE and (offset == 0 or part.op not in _FIRST)
            fresh = part not in self.of and fits and self.is_map(part)
            begins = fresh and self.at[part] > last and self._filled(Place(map, offset), self.at[part])
            if begins and self._lasts(part, until) and value.inputs.count(part) == 1:
                self.of[part], self.until[part] = Place(map, offset), until
            if self.of.get(part) != (map, offset):
                return  # copied when all are there, and what follows too
            last = self.at[part]
            offset += part.channels

    def _add(self, value: Value) -> None:
        first, second = sorted(value.inputs, key=lambda term: self.at[term])
        place = self.of[value]
        if first is second:
            return
        if self._take(first, place, value, self.at[second], second):
            if self._adds_itself(second, value):
                self.accumulated[second] = value
                self.of[second] = place
        elif place in (self.of.get(first), self.of.get(second)):
            self.of[value] = self._new(value)
        else:
            self._take(second, place, value, self.at[value])

    def _adds_itself(self, term: Value, total: Value) -> bool:
        """Whether what computes a term can add it to what is there."""
        one_user = self.users[term] == [total] and term not in self.program.outputs
        if len(term.inputs) > 1 and term.op == "conv" and total.activation not in KEEP_ZERO:
            return False  # filters that are off leave zero
        fits = term.op in ("conv", "upsample") or (term.op in ("affine", "scale") and not total.is_vector)
        return one_user and fits and term.activation == "none" and term not in self.of and self.is_map(term)

    def _update(self, value: Value) -> None:
        """What is added to a part of a map goes onto it as it is computed, if nobody reads later what was there."""
        base, part = value.inputs
        place = self.of[value]
        if self._take(base, place, value, self.at[part], part):
            if self._adds_itself(part, value):
                self.accumulated[part] = value
                self.of[part] = Place(place.map, place.offset + int(value.number))
        elif self.of.get(base) == place:
            self.of[value] = self._new(value)

    def _choose(self, value: Value) -> None:
        _, computed, otherwise = value.inputs
        place = self.of[value]
        if not self.whole(value) or computed is otherwise:
            return
        fresh = computed not in self.of and self.users[computed] == [value] and self.is_map(computed)
        begins = min(self.at[x] for x in self._sum(computed)) if fresh else self.at[value]
        if fresh and computed.op != "cat" and self._take(otherwise, place, value, begins, *self._sum(computed)):
            self.of[computed] = place
            self.gated.add(computed)
        else:
            self._take(otherwise, place, value, self.at[value])

    def _sum(self, value: Value) -> list[Value]:
        """The values whose computation may write where a sum lies."""
        return [value, max(value.inputs, key=lambda term: self.at[term])] if value.op == "add" else [value]

    def _take(self, value: Value, place: Place, over: Value, when: int, *allowed: Value) -> bool:
        """Puts a value where ``over`` is to lie, which overwrites it from ``when`` on; says whether it lies there.

        ``allowed`` are the values whose reading it then may go on: they read before they write. What is written over
        one that lacks channels would be lacking too, so it is copied.
        """
        if value.may_lack or self._leaves(value):
            return False
        if self.of.get(value) == place:  # a gate's choice that lies there too finds it as it was
            chosen = [v for v, p in self.of.items() if v.op == "where" and p == place]
            if any(self.at[r] >= when and r is not over and r not in (*allowed, *chosen) for r in self._readers(value)):
                return False
            self.until[value] = min(when, self._ends(value))
            return True
        free = value not in self.of and self.is_map(value) and over not in self.gated
        if not free or (value.op == "where" and self.graph.maps[place.map].channels != value.channels):
            return False
        late = any(self.at[r] >= when and r is not over and r not in allowed for r in self._readers(value))
        if late or not self._filled(place, self.at[value]):
            return False
        self.of[value], self.until[value] = place, when
        return True

    def _lasts(self, value: Value, until: int) -> bool:
        """Whether nobody needs a value any more when its place is written over."""
        written_over = until < len(self.program.values)
        return not written_over or not (
            self._leaves(value) or any(self.at[reader] >= until for reader in self._readers(value))
        )

    def _leaves(self, value: Value) -> bool:
        """Whether a value, or a part of it, is stored when all has been computed."""
        return value in self.program.outputs or any(u.op == "slice" and self._leaves(u) for u in self.users[value])

    def _filled(self, place: Place, when: int) -> bool:
        """Whether all channels ahead of a place are there before ``when``: a map is filled from its first on."""
        written = [(p.offset, v) for v, p in self.of.items() if p.map == place.map and self.at[v] < when]
        reached = {0}
        for offset, value in sorted(written, key=lambda each: each[0]):
            if offset in reached:
                reached.add(offset + value.channels)
        return place.offset in reached

    def _readers(self, value: Value) -> list[Value]:
        """Whoever reads a value, a part of it or its pooled vector."""
        found = []
        for user in self.users[value]:
            found.append(user)
            # A gate is decided when it is first asked for, at the latest by what it opens.
            if user.op in ("slice", "open") or (user.op == "mean" and user in self.vectors):
                found += self._readers(user)
        return found


def is_point(value: Value) -> bool:
    """Whether it is a 1x1 convolution of one group, as it is: linear in each pixel."""
    return (
        value.op == "conv" and value.groups == 1 and value.window is not None and value.window[:6] == (1, 1, 1, 0, 0, 1)
    )
