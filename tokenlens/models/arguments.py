"""Change arguments of the constructor of a timm model, such as ``global_pool`` or ``reg_tokens``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from inspect import Parameter, signature
from typing import Any

from torch import nn

from tokenlens.catalog import did_you_mean
from tokenlens.models.creation import create_on_meta
from tokenlens.models.names import ModelSource

ELSEWHERE = {
    "img_size": "--img-size (img_size=…)",
    "device": "--device (device=…)",
    "dtype": "--amp (amp=…)",
    "num_classes": "the weights",
}
"""Arguments of constructors that tokenlens passes itself, and what determines them."""


def with_arguments(source: ModelSource, arguments: Mapping[str, Any] | None) -> ModelSource:
    """Return the source of a model whose constructor gets these arguments beside those of its configuration.

    Args:
        source: a model of timm.
        arguments: values by name. Where the constructor takes a class (``mlp_layer``), a name stands for the class of
            ``timm.layers`` or ``torch.nn``.

    Raises:
        ValueError: for an unknown argument (with the constructor's), one that tokenlens passes itself, a value that
            the constructor refuses, and a model of Transformers.
    """
    if not arguments:
        return source
    if source.transformers is not None:
        raise ValueError(
            f"{source.name} is a model of Transformers, whose arguments are in its config.json; change them there"
        )
    for name in arguments.keys() & ELSEWHERE.keys():
        raise ValueError(f"{name} of a model is set by {ELSEWHERE[name]}, not as an argument; leave it out")
    cls = type(create_on_meta(replace(source, specialization=None), None))
    known = _list_arguments(cls)
    for name, value in arguments.items():
        if name not in known:
            raise ValueError(
                f"the constructor of {source.name}, {cls.__qualname__}, has no argument {name!r}."
                f"{did_you_mean(name, known)} It takes {', '.join(known)}"
            )
        if value is None:
            raise ValueError(
                f"timm does not pass None to a constructor, so {name} would keep the value of {source.name}; leave it "
                "out, or give another value"
            )
    changed = replace(source, arguments=dict(arguments))
    try:
        create_on_meta(changed, None)
    except Exception as error:  # a constructor fails with any error, or an assertion, for values that do not fit
        raise ValueError(
            f"timm cannot create {source.name} {describe_arguments(arguments)}: {_reason(error.__cause__ or error)}"
        ) from error
    return changed


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__


def describe_arguments(arguments: Mapping[str, Any]) -> str:
    """Return the arguments in words.

    >>> describe_arguments({"reg_tokens": 4, "global_pool": "avg"})
    "with reg_tokens=4, global_pool='avg'"
    """
    return "with " + ", ".join(f"{name}={value!r}" for name, value in as_plain(arguments).items())


def as_plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments with the names of classes and functions instead of these, for JSON."""
    return {
        name: value if isinstance(value, bool | int | float | str) else getattr(value, "__qualname__", repr(value))
        for name, value in arguments.items()
    }


def _list_arguments(cls: type[nn.Module]) -> list[str]:
    """Return the names that a constructor takes, those that it passes on to the class above it included."""
    names: list[str] = []
    for each in cls.__mro__:
        if "__init__" not in vars(each):
            continue
        parameters = signature(each.__init__).parameters.values()  # type: ignore[misc]
        names += [each.name for each in parameters if each.kind is Parameter.POSITIONAL_OR_KEYWORD]
        if not any(each.kind is Parameter.VAR_KEYWORD for each in parameters):
            break
    return [name for name in dict.fromkeys(names) if name != "self" and name not in ELSEWHERE]
