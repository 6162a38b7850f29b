"""Checks of the arguments that `score`, the selector, the search and the callback share."""

import functools
import inspect
import operator
from collections.abc import Callable, Collection
from typing import Any, ParamSpec, TypeVar

from torch import nn

from lightning_zico.bridge.trainers import is_trainer
from lightning_zico.budget import Budget
from lightning_zico.errors import InvalidArgumentError, number_of

P = ParamSpec("P")
T = TypeVar("T")

_MOST_BITS = 63  # the seeds of torch's generators, without the sign

# Names that other functions use for the data: `Trainer.validate`, scikit-learn, `score`.
_OTHER_NAMES_OF_DATA = ("train_dataloader", "dataloaders", "dataloader", "data", "batches", "X")


def check_loss(loss_fn: Any, step: Any) -> None:
    """Check that at most one of ``loss_fn`` and ``step`` is given, and that it can be called with its arguments.

    Raises:
        InvalidArgumentError: If both are given, or one is not a function with the right number of arguments.
    """
    if loss_fn is not None and step is not None:
        raise InvalidArgumentError(
            "Pass either `loss_fn=` or `step=`, not both: `step=` returns the loss itself, and `loss_fn=` would not be "
            "called."
        )
    _check_callable("loss_fn", loss_fn, "(outputs, targets)", "`loss_fn=nn.CrossEntropyLoss()`", 2)
    _check_callable("step", step, "(module, batch, batch_idx)", "`step=lambda module, batch, batch_idx: ...`", 3)


def whole_number(name: str, value: Any, least: int | None = None, why: str = "") -> int:
    """Return an argument that must be a whole number, as an int.

    Args:
        name: Name of the argument.
        value: The value as given.
        least: The smallest allowed value; None for no limit.
        why: A sentence for the error message that explains the limit.

    Raises:
        InvalidArgumentError: If the value is not a whole number, or too small.

    Example:
        >>> whole_number("num_batches", 2, least=1)
        2
    """
    expected = "a whole number" if least is None else f"a whole number of at least {least}"
    reason = f" {why}" if why else ""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise InvalidArgumentError(f"Invalid {name}={value!r}: expected {expected}.{reason}")
    number = operator.index(value)
    if least is not None and number < least:
        raise InvalidArgumentError(f"Invalid {name}={value!r}: expected {expected}.{reason}")
    if number.bit_length() > _MOST_BITS:
        raise InvalidArgumentError(f"Invalid {name}={value!r}: expected {expected}, of at most {_MOST_BITS} bits.")
    return number


def positive(name: str, value: Any) -> Any:
    """Return an argument that must be a positive number or None, as an int or a float.

    Raises:
        InvalidArgumentError: If it is something else.
    """
    number = number_of(value)
    if value is not None and (number is None or not number > 0):
        raise InvalidArgumentError(f"Invalid {name}={value!r}: expected a positive number or None.")
    return number


def flag(name: str, value: Any) -> bool:
    """Return an argument that must be True or False.

    Raises:
        InvalidArgumentError: If it is something else.
    """
    if not isinstance(value, bool):
        raise InvalidArgumentError(f"Invalid {name}={value!r}: expected True or False.")
    return value


def check_is_trainer(trainer: Any) -> None:
    """Check that a trainer is an instance of Lightning's Trainer, or None.

    Raises:
        InvalidArgumentError: If it is something else.
    """
    if trainer is None or is_trainer(trainer):
        return
    if isinstance(trainer, dict):
        options = ", ".join(f"{name}={value!r}" for name, value in trainer.items())
        raise InvalidArgumentError(f"Invalid trainer={trainer!r}: expected a Trainer. Pass `Trainer({options})`.")
    hint = "Pass proxies as `proxies=...`, and candidates and data to `rank` or `fit`."
    if isinstance(trainer, type):
        hint = "Pass an instance, such as `Trainer(max_epochs=10)`."
    raise InvalidArgumentError(f"Invalid trainer={trainer!r}: expected a Trainer or None. {hint}")


def name_of(function: Any) -> str | None:
    """Return the name of a function or callable object, for the record; None for None."""
    return None if function is None else getattr(function, "__name__", type(function).__name__)


def check_budget(budget: Any) -> None:
    """Check that a budget is a `Budget` or None.

    Raises:
        InvalidArgumentError: If it is something else.
    """
    if budget is not None and not isinstance(budget, Budget):
        raise InvalidArgumentError(
            f"Invalid budget={budget!r}: expected a `Budget`, such as `Budget(macs=600e6)`, or None."
        )


def names_data_as_trainer(method: Callable[P, T]) -> Callable[P, T]:
    """Decorate a method so that passing its data by a name that `Trainer.fit` does not use raises a helpful error.

    Raises:
        TypeError: If the method is called with such a name.
    """

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        wrong = next((name for name in _OTHER_NAMES_OF_DATA if name in kwargs), None)
        if wrong is not None:
            raise TypeError(
                f"`{method.__name__}` has no argument `{wrong}`: as for `Trainer.fit`, pass a DataLoader or a list of "
                "batches as `train_dataloaders=`, or a LightningDataModule as `datamodule=`."
            )
        return method(*args, **kwargs)

    return call


def missing_attribute(owner: Any, name: str, learned: Collection[str], methods: str) -> AttributeError:
    """Return the error for a missing attribute; it names the method to call first if one sets the attribute.

    Args:
        owner: The object that lacks the attribute.
        name: Name of the attribute.
        learned: Names of the attributes that the methods set.
        methods: The methods that set them.
    """
    kind = type(owner).__name__
    text = f"'{kind}' object has no attribute '{name}'"
    if name in learned:
        text += f" yet: it is set by {methods}. Call that first"
    return AttributeError(f"{text}.", name=name, obj=owner)


def _check_callable(name: str, given: Any, signature: str, example: str, count: int) -> None:
    if given is None:
        return
    expected = f"expected a function called as `{name}{signature}`, such as {example}"
    if isinstance(given, type) and issubclass(given, nn.Module):
        raise InvalidArgumentError(
            f"Invalid {name}={given.__name__}: it is a class. Pass an instance, `{given.__name__}()`."
        )
    if not callable(given):
        raise InvalidArgumentError(f"Invalid {name}={given!r}: {expected}.")
    try:
        parameters = inspect.signature(given.forward if isinstance(given, nn.Module) else given)
    except (TypeError, ValueError):  # functions written in C have no signature
        return
    try:
        parameters.bind(*[None] * count)
    except TypeError as error:
        shown = getattr(given, "__name__", type(given).__name__)
        taken = parameters.replace(return_annotation=inspect.Signature.empty)
        raise InvalidArgumentError(
            f"Invalid {name}: `{shown}{taken}` cannot be called with the {count} arguments {signature}: {error}."
        ) from None
