"""The one error a user of the commands is meant to meet."""

import errno


class InputError(ValueError):
    """Input that cannot be used, in one line: what was found, what was expected, what to do.

    Raised at the border, before anything is compiled. Commands print it and exit with code 2.
    """


def disk_is_full(error: Exception) -> bool:
    """Whether the error says so: as an OSError, or in the words of a library that wrapped one."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    return any(
        phrase in str(error) for phrase in ("No space left", "quota exceeded", "File too large")
    )
