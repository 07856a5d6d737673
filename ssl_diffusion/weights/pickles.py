"""Pickles read as data: nothing that they name is imported or called.

`interpret` runs a pickle on a machine that knows scalars, tuples, dictionaries and torch's
descriptions of tensors, and puts one inert object in the place of all else (callbacks, optimisers,
commands). A `pickle.Unpickler` with a guarded find_class would not do: it hashes whatever key the
file builds (a deeply nested tuple overflows the C stack) and allocates its memo table up to any
index that the file writes.
"""

import pickletools
from typing import Any, NamedTuple

INERT = object()  # stands for everything that is not needed to find tensors
UNREAD = object()  # a tensor that is not a strided view of a storage: sparse, quantised, ...


class Name(str):
    """What a pickle asks to import: kept as text."""


class Storage(NamedTuple):
    """A storage as the pickle describes it: type, name of its file, elements."""

    dtype: Name
    key: str
    size: int


class Tensor(NamedTuple):
    """A view of a storage, counted in elements, as the pickle describes it: nothing is checked."""

    storage: Any
    offset: Any
    shape: Any
    strides: Any


def _call(name: Any, arguments: Any) -> Any:
    """What stands for NAME(*arguments)."""
    match name if isinstance(name, Name) else None:
        case "collections.OrderedDict" | "collections.defaultdict":
            return {}
        case "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2":
            return Tensor(*arguments[:4])
        case "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state":
            return arguments[0]
        case str() if name.startswith(("torch._utils._rebuild", "torch._tensor._rebuild")):
            return UNREAD
    return INERT


def interpret(data: bytes) -> Any:
    """The object that a pickle describes: scalars, tuples, dicts with text keys, Tensor, INERT."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    def set_items(target: Any, items: list[Any]) -> None:
        if type(target) is dict:
            for key, value in zip(items[::2], items[1::2], strict=True):
                if type(key) is str:
                    target[key] = value

    for opcode, argument, _ in pickletools.genops(data):
        match opcode.name:
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(memo[argument])
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                stack[-int(name[-1]) :] = [tuple(stack[-int(name[-1]) :])]
            case "NONE" | "EMPTY_LIST" | "EMPTY_SET":
                stack.append(INERT)
            case "LIST" | "FROZENSET":
                since_mark()
                stack.append(INERT)
            case "APPENDS" | "ADDITEMS" | "POP_MARK":
                since_mark()
            case "APPEND" | "BUILD":  # what is added to a list and the state of an object
                stack.pop()
            case "POP":
                marks.pop() if marks and marks[-1] == len(stack) else stack.pop()
            case "DUP":
                stack.append(stack[-1])
            case "NEWTRUE" | "NEWFALSE" as name:
                stack.append(name == "NEWTRUE")
            case "EMPTY_DICT":
                stack.append({})
            case "DICT":
                items = since_mark()
                stack.append({})
                set_items(stack[-1], items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                set_items(stack[-1], [key, value])
            case "SETITEMS":
                items = since_mark()
                set_items(stack[-1], items)
            case "GLOBAL":
                stack.append(Name(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                text = type(name) is str and type(module) is str
                stack.append(Name(f"{module}.{name}") if text else INERT)
            case "REDUCE" | "NEWOBJ":
                arguments, name = stack.pop(), stack.pop()
                stack.append(_call(name, arguments))
            case "NEWOBJ_EX":
                _, arguments, name = stack.pop(), stack.pop(), stack.pop()
                stack.append(_call(name, arguments))
            case "OBJ":
                name, *arguments = since_mark()
                stack.append(_call(name, arguments))
            case "INST":
                stack.append(_call(Name(argument.replace(" ", ".", 1)), since_mark()))
            case "BINPERSID":
                match stack.pop():
                    case ("storage", Name() as dtype, str() as key, _, int() as size):
                        stack.append(Storage(dtype, key, size))
                    case _:
                        stack.append(INERT)
            case "PERSID" | "EXT1" | "EXT2" | "EXT4":
                stack.append(INERT)
            case "STOP":
                return stack.pop()
            case "PROTO" | "FRAME":
                pass
            case name if argument is not None and opcode.stack_after and not opcode.stack_before:
                stack.append(argument)  # numbers and texts
            case name:
                raise ValueError(f"pickle instruction {name}, which torch.save does not write")
    raise ValueError("the pickle has no end")
