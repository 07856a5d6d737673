"""The tokenizer that lies beside published weights.

Older models have the parts of a tokenizer.json in files of their own, of which `wordpiece` (BERT)
and `byte_pairs` (CLIP) make the same.
"""

from collections.abc import Mapping
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from ssl_diffusion.encoders.tokenizer import TOKENIZER, parse_tokenizer
from ssl_diffusion.errors import InputError
from ssl_diffusion.files import read_json
from ssl_diffusion.weights.importers.settings import read_config

# Words of CLIP: English contractions, letters, one digit, what else stands together.
_CLIP_WORD = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_CLIP_BEGIN, _CLIP_END = "<|startoftext|>", "<|endoftext|>"


def find_tokenizer(folder: Path, name: str) -> Tokenizer:
    """The tokenizer in the folder of a published "bert" or "clip_text".

    It is tokenizer.json, or made of vocab.txt, or of vocab.json and merges.txt. Raises InputError
    if none of them is there, or what is there is damaged.
    """
    if (file := folder / TOKENIZER).is_file():
        return parse_tokenizer(_read(file), file)
    parts = {"bert": ("vocab.txt",), "clip_text": ("vocab.json", "merges.txt")}[name]
    if not all((folder / part).is_file() for part in parts):
        raise InputError(
            f"{folder} has no {TOKENIZER} and no {' and '.join(parts)}; copy the tokenizer's files "
            "beside the weights"
        )
    if name == "clip_text":
        return byte_pairs(*(folder / part for part in parts))
    lowercase = read_config(folder, "tokenizer_config.json").get("do_lower_case") is not False
    return wordpiece(folder / parts[0], lowercase)


def wordpiece(vocabulary: Path, lowercase: bool) -> Tokenizer:
    """BERT's tokenizer from its vocabulary, one token a line: Devlin et al. 2019, sec. 3."""
    lines = _read(vocabulary).split("\n")
    ids = {line.rstrip("\r"): index for index, line in enumerate(lines) if line}
    _need(ids, ("[UNK]", "[CLS]", "[SEP]"), vocabulary)
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    special = [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if token in ids]
    tokenizer.add_special_tokens(special)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _between(tokenizer, "[CLS]", "[SEP]", ids)


def byte_pairs(vocabulary: Path, merges: Path) -> Tokenizer:
    """CLIP's tokenizer from its vocabulary and its merges: Radford et al. 2021, sec. 2.4."""
    ids = read_json(vocabulary, "vocabulary")
    _need(ids, (_CLIP_BEGIN, _CLIP_END), vocabulary)
    lines = _read(merges).split("\n")
    pairs = [tuple(line.split()) for line in lines if line.strip() and line[:8] != "#version"]
    try:
        model = models.BPE(ids, pairs, end_of_word_suffix="</w>", unk_token=_CLIP_END)
    except Exception as error:  # the library raises nothing more special
        raise InputError(
            f"{merges} does not fit {vocabulary.name} ({error}); copy both again"
        ) from None
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens([_CLIP_BEGIN, _CLIP_END])
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_WORD), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return _between(tokenizer, _CLIP_BEGIN, _CLIP_END, ids)


def _between(tokenizer: Tokenizer, begin: str, end: str, ids: Mapping[str, int]) -> Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(
        f"{begin} $A {end}", None, [(begin, ids[begin]), (end, ids[end])]
    )
    return tokenizer


def _need(ids: object, tokens: tuple[str, ...], file: Path) -> None:
    if not isinstance(ids, Mapping) or (missing := [t for t in tokens if t not in ids]):
        what = ", ".join(missing) if isinstance(ids, Mapping) else "a table of tokens"
        raise InputError(f"{file} lacks {what}; copy it again")


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not text ({error}); copy it again") from None
