"""How every command starts: flags in, one clear line and exit code 2 when the input is unusable."""

import logging
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from itertools import zip_longest
from pathlib import Path

from absl import flags
from tqdm import tqdm

from ssl_diffusion.errors import InputError, disk_is_full


def run(
    main: Callable[..., None] | Mapping[str, Callable[[], None]],
    flag_values: flags.FlagValues,
    argument: str | None = None,
) -> None:
    """Parses a command's own flags, runs `main` and exits: 0 when it worked, 2 on unusable input.

    Of a command that does several things, `main` has them by name: the first argument says which.
    Where `argument` names one (a file, say), `main` takes the one word that is written without a
    flag. Every command has its own `flag_values`, so that several can be imported side by side. A
    disk that is full is unusable input too: what had been saved before stays as it was.
    """
    if "--help" in sys.argv:
        print(sys.modules["__main__"].__doc__, flag_values.get_help(), sep="\n")
        return
    _log_lines()
    try:
        words = _parse(flag_values)
        if isinstance(main, Mapping):
            if len(words) != 1 or words[0] not in main:
                raise InputError(f"found {words or 'nothing'} to do, expected {' or '.join(main)}")
            main[words[0]]()
            return
        if argument:
            if len(words) != 1:
                raise InputError(f"found {words or 'no argument'}, expected one, {argument}")
            main(words[0])
            return
        if words:
            raise InputError(f"unexpected argument {words[0]!r}; flags are written --name=value")
        main()
    except InputError as error:
        _fail(str(error))
    except (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        _fail(f"cannot use {error.filename}: {error.strerror}; give another path")
    except Exception as error:
        if not disk_is_full(error):
            raise
        _fail(
            f"no space left on the disk ({error}); free some and run the same command again: what "
            "was saved before is intact"
        )


def parse_numbers(
    flag: str, text: str, separator: str, count: int, meaning: str
) -> tuple[int, ...]:
    """Whole numbers from a flag's text; InputError unless there are `count`."""
    if not re.fullmatch(separator.join([r"-?\d+"] * count), text):
        raise InputError(f"--{flag}={text}; expected {meaning}")
    return tuple(int(number) for number in text.split(separator))


class _Lines(logging.Handler):
    """Log records as lines on stderr, above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def _log_lines() -> None:
    root = logging.getLogger()
    # Orbax adds a handler of its own when it is imported, and every line would come twice.
    root.handlers = [
        handler for handler in root.handlers if type(handler) is not logging.StreamHandler
    ]
    if not any(isinstance(handler, _Lines) for handler in root.handlers):
        root.addHandler(_Lines())
    root.setLevel(logging.INFO)
    for noisy, level in (("absl", logging.ERROR), ("jax", logging.WARNING)):
        logging.getLogger(noisy).setLevel(level)


def _parse(flag_values: flags.FlagValues) -> list[str]:
    """Parses the command line; returns what is no flag.

    Raises InputError for whatever is wrong with it or with its config.
    """
    for argument, following in zip_longest(sys.argv[1:], sys.argv[2:], fillvalue=""):
        name, _, value = argument.lstrip("-").partition("=")
        path = (value or following).split(":")[0]
        if name == "config" and not Path(path).is_file():
            raise InputError(f"no such config: {path}; configs/ holds the shipped ones")
    try:
        rest = flag_values(sys.argv)
    # A config file is a program, and its library reports what is wrong in it by many types.
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = re.sub(r"^[\w.]*InputError: ", "", lines[-1].strip())
        if isinstance(error, KeyError):  # of a section that is a plain dict
            reason += " is not there to be changed; give its section as a whole, --a.b={...}"
        raise InputError(f"cannot use the command line: {reason}") from None
    flags.FLAGS.mark_as_parsed()  # Grain's worker processes read its global flags
    return rest[1:]


def _fail(message: str) -> None:
    warnings.simplefilter("ignore")  # a save that was given up warns of itself at exit
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)
