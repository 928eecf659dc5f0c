"""Problems: quantities that follow from one another, some of them needed for the answer and some not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Literal

LARGEST = 20
"""No quantity is larger: sums up to it are what a small model has to know."""
LARGEST_DIFFERENCE = 9

Relation = Literal["given", "more", "fewer", "twice", "together"]


@dataclass(frozen=True)
class Family:
    """What a problem is about."""

    name: str
    noun: str
    """What is counted, plural."""
    owners: tuple[str, ...]
    """Names of quantities, a word each."""


_PEOPLE = ("Ann", "Ben", "Cat", "Dan", "Eve", "Fay", "Gus", "Hal", "Ida", "Jim", "Kim", "Leo")
_CITIES = ("Rome", "Lima", "Oslo", "Bonn", "Cork", "Kyiv", "Nice", "Pisa", "Riga", "Suva", "Tunis", "Vienna")
_COLOURS = ("Red", "Blue", "Green", "Black", "White", "Brown", "Pink", "Gold", "Grey", "Teal", "Lime", "Plum")
_ANIMALS = ("Fox", "Owl", "Bear", "Wolf", "Hare", "Deer", "Mole", "Crow", "Swan", "Frog", "Seal", "Lynx")

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family("shells", "shells", _PEOPLE),
        Family("trams", "trams", _CITIES),
        Family("marbles", "marbles", _COLOURS),
        Family("nuts", "nuts", _ANIMALS),
    )
}
"""In-domain."""

SHIFTED_FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family("coins", "coins", _ANIMALS[:6] + _PEOPLE[:6]),
        Family("lamps", "lamps", _COLOURS[6:] + _CITIES[6:]),
    )
}
"""Of the shifted split: other things are counted, and owners of two kinds meet."""


@dataclass(frozen=True)
class Quantity:
    """One owner's number, and what it follows from."""

    owner: str
    relation: Relation
    parents: tuple[str, ...]
    """Owners: none if given, two if "together", else one."""
    amount: int
    """The number if given; the difference if "more" or "fewer"; else 0."""
    value: int
    """In [1, LARGEST]."""


@dataclass(frozen=True)
class Problem:
    """Quantities in order of mention, each one after its parents."""

    family: Family
    quantities: tuple[Quantity, ...]
    goal: str
    """Owner of the quantity that is asked for."""

    def __getitem__(self, owner: str) -> Quantity:
        return next(quantity for quantity in self.quantities if quantity.owner == owner)

    @property
    def answer(self) -> int:
        """The number that is asked for."""
        return self[self.goal].value

    @property
    def derived(self) -> tuple[str, ...]:
        """Owners of the quantities that have to be worked out, in order of mention."""
        return tuple(quantity.owner for quantity in self.quantities if quantity.parents)

    @property
    def needed(self) -> frozenset[str]:
        """The goal and every derived quantity that it follows from."""
        found: set[str] = set()
        waiting = [self.goal]
        while waiting:
            owner = waiting.pop()
            if owner not in found and self[owner].parents:
                found.add(owner)
                waiting.extend(self[owner].parents)
        return frozenset(found)


def draw_problem(random: Random, family: Family, *, steps: int) -> Problem:
    """A problem whose answer needs ``steps`` quantities, with one or two others from which nothing follows.

    Args:
        random: Source of all choices.
        family: What it is about.
        steps: Derived quantities that the goal needs, itself included, 1 or more.
    """
    while True:
        problem = _attempt(random, family, steps)
        # A loose end that could not be joined (the sum was too large) is not needed.
        if len(problem.needed) == steps:
            return problem


def _attempt(random: Random, family: Family, steps: int) -> Problem:
    owners = list(family.owners)
    random.shuffle(owners)
    quantities = [_given(random, owners.pop())]
    # Two starts, and forks below, so that which quantity comes first is a choice.
    if steps > 1 and random.random() < 0.5:
        quantities.append(_given(random, owners.pop()))
    loose = [quantity.owner for quantity in quantities]
    for step in range(steps):
        # Every loose end but the goal is to be used up in the steps that are left; two go together at a time.
        must_join = len(loose) - 1 >= steps - step
        forks = not must_join and random.random() < 0.3
        starts = [quantity.owner for quantity in quantities] if forks else loose
        quantity = _derived(random, owners.pop(), quantities, starts, join=must_join or random.random() < 0.25)
        loose = [owner for owner in loose if owner not in quantity.parents] + [quantity.owner]
        quantities.append(quantity)
    goal = quantities[-1].owner
    needed = list(quantities)
    for _ in range(random.choice((1, 1, 2))):
        parent = random.choice(needed)
        extra = _from_one(random, owners.pop(), parent)
        quantities.insert(random.randint(quantities.index(parent) + 1, len(quantities)), extra)
    return Problem(family, tuple(quantities), goal)


def _given(random: Random, owner: str) -> Quantity:
    value = random.randint(2, 9)
    return Quantity(owner, "given", (), value, value)


def _derived(random: Random, owner: str, known: list[Quantity], starts: list[str], *, join: bool) -> Quantity:
    values = {quantity.owner: quantity.value for quantity in known}
    first = random.choice(starts)
    if join and len(known) > 1:
        others = [one for one in starts if one != first] or [one for one in values if one != first]
        second = random.choice(others)
        total = values[first] + values[second]
        if total <= LARGEST:
            return Quantity(owner, "together", (first, second), 0, total)
    return _from_one(random, owner, next(quantity for quantity in known if quantity.owner == first))


def _from_one(random: Random, owner: str, parent: Quantity) -> Quantity:
    relations: list[Relation] = ["more", "fewer"]
    if 2 * parent.value <= LARGEST:
        relations.append("twice")
    relation = random.choice(relations)
    if relation == "twice":
        return Quantity(owner, "twice", (parent.owner,), 0, 2 * parent.value)
    room = LARGEST - parent.value if relation == "more" else parent.value - 1
    if room < 1:
        relation, room = ("fewer", parent.value - 1) if relation == "more" else ("more", LARGEST - parent.value)
    amount = random.randint(1, min(room, LARGEST_DIFFERENCE))
    sign = 1 if relation == "more" else -1
    return Quantity(owner, relation, (parent.owner,), amount, parent.value + sign * amount)
