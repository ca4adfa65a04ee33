"""One table a format, run both ways: every tensor meets exactly one rule.

A rule names one tensor twice, in the format's own words and in the trainer's; `{}` stands where a layer's number is.
What is on purpose not kept has a rule that says so (`ours=None`); its name may end in `*`, for whole parts of a model.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from torch import Tensor

from converters.errors import ConversionError
from converters.files import LazyTensor
from trainer.model import listed


@dataclass(frozen=True, slots=True)
class Reshape:
    """A change of a tensor's shape or order, and its exact reverse."""

    apply: Callable[[Tensor], Tensor]
    """Theirs -> ours."""
    undo: Callable[[Tensor], Tensor]
    """Ours -> theirs."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One tensor under its two names."""

    theirs: str
    ours: str | None
    """None: dropped when read, and not there when written."""
    reshape: Reshape | None = None


def to_ours(tensors: Iterable[LazyTensor], rules: Sequence[Rule], expected: Collection[str]) -> list[LazyTensor]:
    """Rename a format's tensors to the trainer's names, in the order of `expected`.

    Raises `ConversionError` naming at once tensors without a rule, those that arrive twice, and those of `expected`
    that did not arrive; of each kind the first, and how many.
    """
    renamed = [pair for tensor in tensors for pair in _rename(tensor, rules, inward=True)]
    _refuse_misfits(renamed, expected)
    by_name = {name: tensor for tensor, name in renamed if name is not None}
    return [by_name[name] for name in expected]


def to_theirs(tensors: Iterable[LazyTensor], rules: Sequence[Rule]) -> list[LazyTensor]:
    """Rename the trainer's tensors to a format's names; raises `ConversionError` as `to_ours`."""
    kept = [rule for rule in rules if rule.ours is not None]
    renamed = [pair for tensor in tensors for pair in _rename(tensor, kept, inward=False)]
    _refuse_misfits(renamed, ())
    return [tensor for tensor, _ in renamed]


#: The name of a tensor that no rule speaks of.
_NO_RULE = "no rule"


def _rename(tensor: LazyTensor, rules: Sequence[Rule], inward: bool) -> list[tuple[LazyTensor, str | None]]:
    """Return the tensor under each new name that a rule gives it: one, unless the tensor or the table is wrong."""
    results: list[tuple[LazyTensor, str | None]] = []
    for rule in rules:
        source, target = (rule.theirs, rule.ours) if inward else (rule.ours or "", rule.theirs)
        if found := _match(source, tensor.name):
            name = None if target is None else target.format(*found.groups())
            results.append((_reshaped(tensor, rule, inward).renamed(name or tensor.name), name))
    return results or [(tensor, _NO_RULE)]


def _match(pattern: str, name: str) -> re.Match[str] | None:
    return _expression(pattern).fullmatch(name)


@cache
def _expression(pattern: str) -> re.Pattern[str]:
    return re.compile(re.escape(pattern).replace(r"\{\}", r"(\d+)").replace(r"\*", ".*"))


def _reshaped(tensor: LazyTensor, rule: Rule, inward: bool) -> LazyTensor:
    if rule.reshape is None:
        return tensor
    return tensor.mapped(rule.reshape.apply if inward else rule.reshape.undo)


def _refuse_misfits(renamed: Sequence[tuple[LazyTensor, str | None]], expected: Collection[str]) -> None:
    counts = Counter(name for _, name in renamed if name not in (None, _NO_RULE))
    problems = {
        "no rule for": sorted(tensor.name for tensor, name in renamed if name == _NO_RULE),
        "more than one tensor for": sorted(name for name, count in counts.items() if name and count > 1),
        "not found:": sorted(set(expected) - counts.keys()),
        "not part of a model of this config:": sorted(counts.keys() - set(expected)) if expected else [],
    }
    said = [f"{what} {listed([str(name) for name in names])}" for what, names in problems.items() if names]
    if said:
        raise ConversionError("tensors do not fit: " + "; ".join(said))
