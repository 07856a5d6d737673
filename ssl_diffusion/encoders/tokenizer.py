"""Texts -> token ids, by a tokenizer.json (the format of Hugging Face's `tokenizers`)."""

from pathlib import Path

from tokenizers import Tokenizer

from ssl_diffusion.errors import InputError

TOKENIZER = "tokenizer.json"


def parse_tokenizer(content: str, file: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json, `file`, that neither cuts texts nor pads them.

    Raises InputError if it is none.
    """
    try:
        tokenizer = Tokenizer.from_str(content)
    except Exception as error:  # the library raises nothing more special
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{file} is no tokenizer ({reason}); copy it again") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def tokenize(tokenizer: Tokenizer, text: str, allowed: int) -> list[int]:
    """The ids of a text, with those that begin and end it.

    Raises InputError if there is nothing in the text, or if it has more than `allowed` tokens.
    """
    if not text.strip():
        raise InputError("the text is empty; say what is to be seen")
    shown = repr(text if len(text) <= 60 else text[:57] + "...")
    try:
        encoding = tokenizer.encode(text)
    except (UnicodeError, TypeError):  # half of a surrogate pair
        raise InputError(f"the text {shown} is not valid Unicode; type it again") from None
    if all(encoding.special_tokens_mask):
        raise InputError(f"the text {shown} has no word in it; say what is to be seen")
    if len(encoding.ids) > allowed:
        raise InputError(
            f"the text {shown} has {len(encoding.ids)} tokens (its begin and end counted), the "
            f"text encoder takes {allowed} at most; shorten it"
        )
    return encoding.ids
