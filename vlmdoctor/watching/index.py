"""The parameters under watch: where each belongs, and sums over roles and layers."""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Iterator

import numpy as np
from torch import Tensor, nn

from vlmdoctor.knowledge.parameter_names import canonical_name, layer_of, role_of


class Index:
    """The model's parameters in its own order, tied ones once.

    It knows where they are and holds none of them: not by weak references either, with which torch refuses
    to swap a parameter for another one.

    Attributes:
        names: Their canonical names.
        sizes: [N] numbers of elements.
        ids: Their identities when the index was made.
    """

    def __init__(self, model: nn.Module) -> None:
        named = [
            (canonical_name(name), parameter)
            for name, parameter in model.named_parameters()
            if not nn.parameter.is_lazy(parameter)
        ]
        owners = {
            id(parameter): (weakref.ref(module), name, id(parameter))
            for module in model.modules()
            for name, parameter in module._parameters.items()
        }
        found = [owners.get(id(parameter), (_nowhere, "", 0)) for _, parameter in named]
        # One module has several, one after the other; modules are not compared, for theirs may be any `==`.
        groups = [list(group) for _, group in itertools.groupby(found, key=lambda one: id(one[0]))]
        self._owners = [(group[0][0], [(name, identity) for _, name, identity in group]) for group in groups]
        self._places = [(owner, name) for owner, name, _ in found]
        self._at_hand: list[Tensor | None] | None = None
        self._looking = False
        self.names = [name for name, _ in named]
        self.ids = [id(parameter) for _, parameter in named]
        self.sizes = np.array([parameter.numel() for _, parameter in named], dtype=np.float64)
        self._roles, self._role_of = _number([role_of(name) for name in self.names])
        self._layers, self._layer_of = _number([layer_of(name)[0] for name in self.names])

    def tensors(self) -> list[Tensor | None]:
        """The parameters; None in the place of one that is gone or was exchanged."""
        if self._at_hand is not None:
            return self._at_hand
        found: list[Tensor | None] = []
        for owner, own in self._owners:
            module = owner()
            registered = {} if module is None else module._parameters
            for name, identity in own:
                tensor = registered.get(name)
                found.append(tensor if id(tensor) == identity else None)
        if self._looking:
            self._at_hand = found
        return found

    def tensor(self, place: int) -> Tensor | None:
        """One of them."""
        owner, name = self._places[place]
        module = owner()
        tensor = None if module is None else module._parameters.get(name)
        return tensor if id(tensor) == self.ids[place] else None

    @contextlib.contextmanager
    def at_hand(self) -> Iterator[None]:
        """Inside, while nothing of the run's own goes on, the parameters are looked up once only."""
        self._looking = True
        try:
            yield
        finally:
            self._looking, self._at_hand = False, None

    def trainable(self) -> np.ndarray:
        """[N] bool: which of them require gradients now."""
        return np.array([t is not None and t.requires_grad for t in self.tensors()], dtype=bool)

    def by_role(self, squares: np.ndarray, counted: np.ndarray) -> dict[str, float]:
        """Role -> root of the sum of `squares` [N] over the `counted` [N]; roles without any are left out."""
        return _roots(self._roles, self._role_of, squares, counted)

    def by_layer(self, squares: np.ndarray, counted: np.ndarray) -> dict[str, float]:
        """The same for each layer; what is in no layer is left out."""
        roots = _roots(self._layers, self._layer_of, squares, counted)
        roots.pop("", None)
        return roots


def _nowhere() -> None:
    """The owner of a parameter that no module has registered."""


def _number(labels: list[str]) -> tuple[list[str], np.ndarray]:
    kinds = list(dict.fromkeys(labels))
    place = {kind: number for number, kind in enumerate(kinds)}
    return kinds, np.array([place[label] for label in labels], dtype=np.intp)


def _roots(
    kinds: list[str], kind_of: np.ndarray, squares: np.ndarray, counted: np.ndarray
) -> dict[str, float]:
    number = np.bincount(kind_of, weights=counted, minlength=len(kinds))
    total = np.bincount(kind_of, weights=np.where(counted, squares, 0.0), minlength=len(kinds))
    roots = np.sqrt(total).tolist()
    return {kind: root for kind, root, members in zip(kinds, roots, number.tolist(), strict=True) if members}
