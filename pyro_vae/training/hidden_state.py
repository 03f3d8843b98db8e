"""What programs keep outside of tensors: Python state that they read, and that a run of theirs changes.

A graph of tensors knows nothing of a count in an attribute, a temperature in a closure or a generator of NumPy's. A
:class:`Watch` finds them: it notes which code of the user's runs, follows everything that this code can reach, and
compares pictures of it.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyro_vae.training.code import Code
from pyro_vae.training.pictures import BESIDE, Label, State, Walk

__all__ = ["HINT", "Watch"]

HINT = "a count or a schedule is part of a graph where it is a buffer, updated in place"


class Watch:
    """Watches programs.

    Args:
        roots: What is run, by the name that messages give it.
        beside: What is not run, but may change what is. Its state is put back with the rest, and never judged.

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
        """Runs a function, and notes which of the user's code that takes."""
        return self._code.run(function, *args)

    def forget(self) -> None:
        """Forgets what runs asked the world for: a first run may ask what later ones do not."""
        self._code.asks.clear()

    def state(self) -> State:
        """A picture of all that the programs can reach."""
        walk = Walk(self._code)
        for owner, root in self._roots.items():
            walk.follow(Label(owner, "self"), root)
        walk.go()  # what is found from the programs has its name from there
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
        """Why a run between two pictures cannot be a graph's, in one sentence; None if nothing speaks against it."""
        if changes := before.changes(after):
            return changes[0].by_running
        for reasons in (before.moved(after), list(self._code.asks), list(after.unreadable)):
            if reasons:
                return reasons[0]
        return None
