"""State of programs outside of tensors: Python state that they read, and that a run changes.

A graph of tensors does not include a count in an attribute, a temperature in a closure or a NumPy generator. A
:class:`Watch` finds them: it notes which user code runs, follows everything that this code can reach, and compares
snapshots of it.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyro_vae.programs.code import Code
from pyro_vae.programs.pictures import BESIDE, Label, State, Walk

__all__ = ["HINT", "Watch"]

HINT = "to make a count or a schedule part of the graph, keep it in a buffer and update it in place"


class Watch:
    """Watches programs.

    Args:
        roots: The objects that run, by their name in messages.
        beside: Objects that do not run but may change those that do. Their state is restored too, but never compared.

    Example:
        >>> class Counter:
        ...     calls = 0
        ...
        ...     def __call__(self, x):
        ...         self.calls += 1
        ...         return x
        >>> counter = Counter()
        >>> watch = Watch({"the model": counter})
        >>> result = watch.run(counter, 1.0)
        >>> before, result, after = watch.state(), watch.run(counter, 1.0), watch.state()
        >>> watch.reason(before, after)
        'the model changes self.calls (1 → 2) when it runs'
    """

    def __init__(self, roots: Mapping[str, Any], beside: Sequence[Any] = ()) -> None:
        self._roots = {owner: root for owner, root in roots.items() if root is not None}
        self._beside = [thing for thing in beside if thing is not None]
        self._code = Code()

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Runs a function and notes which user code runs."""
        return self._code.run(function, *args)

    def forget(self) -> None:
        """Forgets calls to the outside, such as reading a clock: a first run may make calls that later ones do not."""
        self._code.asks.clear()

    def state(self) -> State:
        """A snapshot of everything that the programs can reach."""
        walk = Walk(self._code)
        for owner, root in self._roots.items():
            walk.follow(Label(owner, "self"), root)
        walk.go()  # names come from the programs first
        for thing in self._code.objects():
            walk.follow(Label("the programs", type(thing).__name__), thing)
        for function in self._code.functions():
            walk.follow(Label("the programs", function.__qualname__), function)
        for code, space in self._code.ran.items():
            walk.globals_of(code, space)
        if self._code.reads_environment:
            walk.follow(Label("the programs", "os.environ"), os.environ)
        walk.go()
        for thing in self._beside:
            walk.follow(Label(BESIDE, "self"), thing)
        walk.go()
        return walk.found

    def reason(self, before: State, after: State) -> str | None:
        """Why the run between two snapshots cannot become a graph, in one sentence; None if it can."""
        if changes := before.changes(after):
            return changes[0].by_running
        for reasons in (before.moved(after), list(self._code.asks), list(after.unreadable)):
            if reasons:
                return reasons[0]
        return None
