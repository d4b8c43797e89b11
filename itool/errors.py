"""Every error that iTool raises on purpose.

    ItoolError                1   anything else that we can name
    ├── ConfigError          64   a setting is unknown, ill-typed or impossible: no retry helps
    ├── InputError           65   data or a base model is unusable: no retry helps
    │   └── ArtifactError    65   a stored object is missing, truncated or altered
    ├── DependencyError      69   S3, vLLM or another service is down: retry
    ├── StorageError         74   the disk is full, or a file or folder cannot be written or read
    ├── NumericalError       76   a loss, a gradient or a model's output is not finite: no retry helps
    └── Interrupted          75   stopped, long stages after a verified checkpoint: start again to resume

Modules refine these, never their exit code; StageFailed carries the stage's.

A message says what, which value, where and what to do, in one line. The number is the process's exit code; the Kubernetes
`podFailurePolicy` and the controller act on it (the table is in docs/cli.md).
"""

from __future__ import annotations


class ItoolError(Exception):
    """Root of the tree. `exit_code` is what the process ends with; `remedy`, when given, is what the user can do."""

    exit_code = 1

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        one_line = " ".join(message.split())
        super().__init__(f"{one_line.rstrip('.')}. {remedy}" if remedy else one_line)


class ConfigError(ItoolError):
    """A setting is unknown, ill-typed or impossible."""

    exit_code = 64


class InputError(ItoolError):
    """A data file, an example or a base model cannot be used."""

    exit_code = 65


class ArtifactError(InputError):
    """A stored object is missing, truncated or altered."""


class DependencyError(ItoolError):
    """A service that the stage needs does not answer: worth a retry."""

    exit_code = 69


class StorageError(ItoolError):
    """A disk is full, or a file or folder cannot be written or read."""

    exit_code = 74


class Interrupted(ItoolError):  # noqa: N818 - an interruption is not an error, and the name is the contract's
    """The stage was asked to stop and has saved a verified checkpoint; `prepare` and `report`, which are short, start over."""

    exit_code = 75


class NumericalError(ItoolError):
    """A loss, a gradient or what a model computes became NaN or infinite."""

    exit_code = 76


NEVER_AGAIN = (ConfigError.exit_code, InputError.exit_code, NumericalError.exit_code)
"""Another attempt with the same settings, data and seed would end alike."""

DOCUMENTED_CODES = frozenset(
    error.exit_code for error in (ItoolError, ConfigError, InputError, DependencyError, StorageError, Interrupted, NumericalError)
)
"""Those of the tree. A process may end with another one, when a signal ends it."""
