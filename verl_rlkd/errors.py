"""What can go wrong, and whose fault it is.

Two kinds of failure never meet (DESIGN: "Two kinds of failure"):

* The *student's* (no ``</think>``, truncated, nothing decomposable) is data. It is a low score with the
  reason as a 0/1 component, and no exception at all.
* *Ours* (an endpoint down, timed out, an unreadable verdict) is one of the two ``ServiceError`` classes
  below. The reward manager turns it into ``rlkd/failed = 1``; the RLKD trainer mode drops the row.

Bad *input* from the user is a ``ConfigError`` or ``DataError``: one line that says what, where (file, row,
key) and what to do. Each class also is the standard library's nearest type, so that callers may catch that.
"""

from __future__ import annotations


class RlkdError(Exception):
    """Base class of everything this package raises on purpose."""


class ConfigError(RlkdError, ValueError):
    """A wrong key or value in the configuration; the message names it and the cure."""


class DataError(RlkdError, ValueError):
    """A wrong file, row or column; the message names it and the cure."""


class ServiceError(RlkdError, RuntimeError):
    """A model we depend on did not do its work: our failure, never the student's."""


class GeneratorError(ServiceError):
    """The GSRM generator's answer did not arrive."""


class MatcherError(ServiceError):
    """A judge's verdict did not arrive, or could not be read as yes or no."""


class UnreadableVerdictError(MatcherError):
    """A judge answered with neither yes nor no."""


class UnhealthyError(ServiceError):
    """A failure signature fired that ``rlkd.health.stop_on`` names."""


class FailureLimitError(ServiceError):
    """More responses went unscored than ``rlkd.on_failure`` and ``rlkd.max_failure_share`` allow."""
