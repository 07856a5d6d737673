"""The one error a user of the commands is meant to meet."""

import errno

# An OSError with one of these is for the user to mend, not a fault of the program.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class InputError(ValueError):
    """Input that cannot be used, in one line: what was found, what was expected, what to do.

    Raised at the border, before anything is compiled. Commands print it and exit with code 2.
    """
