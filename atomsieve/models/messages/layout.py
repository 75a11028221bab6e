"""Which components a message has: groups of one order, each with its own filter of the distance.

An edge e runs from sender j to receiver i; d is its length and u its direction. A layout holds

- carried groups of order l = 0, 1, 2, with 1, 3 or 5 components: `out_l[i] += w(d) * p_l[j]`;
- pushed groups of order l = 1, 2: `out_l[i] += w(d) * p[j] * Y_l(u)`, p a scalar channel, with Y_1(u) = u and Y_2 as in
  `atomsieve.models.messages.tensors`.

The order of components, the same everywhere:

- payload `x [K,N,C_in,F]`: carried 0, pushed 1, pushed 2, carried 1, carried 2;
- filters `weights [K,R,G*F]`: carried 0, carried 1, pushed 1, carried 2, pushed 2;
- result `[K,N,C_out,F]`: order 0, order 1, order 2.

A group that a layout lacks takes no place. All groups of one call have F channels. Groups of fewer channels (rank 2 is
the dearest) are a second call with a layout of their own; it costs no more than the same groups would cost in one call.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

SIZES = {0: 1, 1: 3, 2: 5}
"""Number of components of each order."""


@dataclass(frozen=True)
class Group:
    """One group of a layout.

    Attributes
    ----------
    order : l. pushed : the direction comes from the edge, the payload is a scalar; else the payload has the components.
    filter : its place among the filters.
    start : its first component in the payload; it has one if pushed, `SIZES[order]` if carried.
    into : the first component of its order in the result.
    """

    order: int
    pushed: bool
    filter: int
    start: int
    into: int

    @property
    def size(self) -> int:
        """Number of components in the result."""
        return SIZES[self.order]

    @property
    def sign(self) -> int:
        """Factor of `Y_l` where the edge is reversed: -1 for odd orders that are pushed, else 1."""
        return -1 if self.pushed and self.order % 2 else 1


@dataclass(frozen=True)
class Layout:
    """The groups of a message; see the head of this module for the order of their components.

    Attributes
    ----------
    carried, pushed : orders of the groups, rising.

    Raises
    ------
    ValueError : an order that is not allowed or stands twice, or no group at all.
    """

    carried: tuple[int, ...] = ()
    pushed: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, orders, allowed in (("carried", self.carried, (0, 1, 2)), ("pushed", self.pushed, (1, 2))):
            if tuple(sorted({*orders} & {*allowed})) != orders:
                raise ValueError(
                    f"{name} orders of a message layout are {orders}; allowed: {allowed}, rising, each once"
                )
        if not self.carried and not self.pushed:
            raise ValueError("a message layout needs at least one group: name an order in carried or pushed")

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The groups, in the order of their filters."""
        payload = [(0, False), (1, True), (2, True), (1, False), (2, False)]
        starts, place = {}, 0
        for order, pushed in payload:
            if self.has(order, pushed):
                starts[order, pushed] = place
                place += 1 if pushed else SIZES[order]
        filters = [kind for kind in ((0, False), (1, False), (1, True), (2, False), (2, True)) if kind in starts]
        into = {order: sum(SIZES[k] for k in self.orders if k < order) for order in self.orders}
        return tuple(
            Group(order, pushed, n, starts[order, pushed], into[order]) for n, (order, pushed) in enumerate(filters)
        )

    @cached_property
    def orders(self) -> tuple[int, ...]:
        """Orders of the result, rising."""
        return tuple(sorted({*self.carried, *self.pushed}))

    def has(self, order: int, pushed: bool) -> bool:
        """Return whether the layout has this group."""
        return order in (self.pushed if pushed else self.carried)

    def of_order(self, order: int) -> tuple[Group | None, Group | None]:
        """Return the carried and the pushed group of an order, None for one that the layout lacks."""
        found = {g.pushed: g for g in self.groups if g.order == order}
        return found.get(False), found.get(True)

    @cached_property
    def inputs(self) -> int:
        """Number of components of the payload, C_in."""
        return sum(SIZES[order] for order in self.carried) + len(self.pushed)

    @cached_property
    def outputs(self) -> int:
        """Number of components of the result, C_out."""
        return sum(SIZES[order] for order in self.orders)

    @property
    def filters(self) -> int:
        """Number of filters, G."""
        return len(self.carried) + len(self.pushed)

    @property
    def code(self) -> int:
        """Number of the layout in compiled kernels: sum of 1, 2, 4 for carried 0, 1, 2 and 8, 16 for pushed 1, 2."""
        return sum(1 << order for order in self.carried) + sum(4 << order for order in self.pushed)

    def __str__(self) -> str:
        return f"carried {list(self.carried)} pushed {list(self.pushed)}"


SCALARS = Layout(carried=(0,))
"""Invariant messages (Schuett et al., NeurIPS 2017: SchNet)."""

PAINN = Layout(carried=(0, 1), pushed=(1,))
"""Payload p_s, p_b, q; filters w_s, w_a, w_b; result ds, dv (Schuett et al., ICML 2021, eqs. 7 and 8)."""

CARRIED = Layout(carried=(0, 1, 2))
"""Scalars, vectors and symmetric traceless tensors of neighbours (Simeon and De Fabritiis, NeurIPS 2023: TensorNet)."""

MOMENTS = Layout(carried=(0,), pushed=(1, 2))
"""Moments of scalars of the neighbours: the embedding of TensorNet, and a first layer with ranks 1 and 2."""

PAINN_MOMENTS = Layout(carried=(0, 1), pushed=(1, 2))
"""PaiNN and the second moment of scalars, which nothing carries on."""

PAINN_TENSORS = Layout(carried=(0, 1, 2), pushed=(1, 2))
"""PaiNN with tensors of rank 2 beside its vectors."""

TENSORS = Layout(carried=(2,), pushed=(2,))
"""The rank-2 groups alone: a second call beside PAINN, with channels of its own number."""

QUADRUPOLES = Layout(pushed=(2,))
"""The second moment of scalars alone: a second call beside PAINN, with channels of its own number."""

NAMED_LAYOUTS = (SCALARS, PAINN, CARRIED, MOMENTS, PAINN_MOMENTS, PAINN_TENSORS, TENSORS, QUADRUPOLES)
"""The layouts above."""
