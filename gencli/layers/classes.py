"""The classes that a conditional model is told."""

from gencli.errors import UsageError
from gencli.model import Spec


def class_count(conditional: bool, spec: Spec, family: str) -> int:
    """How many classes a model is told; 0 if it is not conditional.

    Raises:
        UsageError: it is, and the data has none.
    """
    if conditional and not spec.classes:
        raise UsageError(f"a conditional {family} needs labelled data, and this data has none or a single class; leave "
                         f"--conditional out or give data with labels")
    return len(spec.classes) if conditional else 0
