"""From a config's (or model.json's) architecture to a network."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from ssl_diffusion.errors import InputError
from ssl_diffusion.models.conditioner import Conditioner, TokenProjection
from ssl_diffusion.models.dit import DiT
from ssl_diffusion.models.unet import UNet


class Policy(NamedTuple):
    """Number formats, "float32" or "bfloat16": of the parameters kept, the arithmetic, the output.

    Statistics of normalisation, softmax and the timestep's embedding are float32 whatever it says.
    """

    params: str = "float32"
    compute: str = "float32"
    output: str = "float32"


FLOAT32 = Policy()
PRECISIONS = {"float32": FLOAT32, "bfloat16": Policy(params="bfloat16", compute="bfloat16")}
"""What `sample` and `generate` choose from."""

NETWORKS = {"unet": UNet, "dit": DiT}
CONDITIONERS = {"linear": Conditioner, "tokens": TokenProjection}


def build_network(architecture: dict[str, Any], policy: Policy = FLOAT32) -> nn.Module:
    """Returns the denoiser `architecture["name"]`, "unet" or "dit"; the rest are its fields.

    It is called as `apply({"params": p}, latent[b h w c], timestep[b], context[b tokens width]) ->
    prediction[b h w out_channels]`. Raises InputError as `build` does, and for an unknown name.
    """
    return build_named("network", NETWORKS, architecture, jnp.dtype(policy.compute))


def build_conditioner(fields: dict[str, Any]) -> Conditioner | TokenProjection:
    """Returns the conditioner `fields["name"]`, "linear" or "tokens"; the rest are its fields.

    Raises InputError as `build` does, and for an unknown name.
    """
    return build_named("conditioner", CONDITIONERS, fields)


def build_named(
    what: str,
    known: Mapping[str, type[nn.Module]],
    given: Mapping[str, Any],
    dtype: Any = jnp.float32,
) -> Any:
    """Returns the network of `known` that `given["name"]` names; the rest are its fields.

    Raises InputError as `build` does, and for an unknown name of a `what`.
    """
    name = given.get("name")
    if name not in known:
        raise InputError(f"{what} name {name!r}, expected one of {', '.join(known)}")
    return build(known[name], {key: given[key] for key in given if key != "name"}, dtype)


def build(
    network: type[nn.Module], given: Mapping[str, Any], dtype: Any = jnp.float32
) -> nn.Module:
    """Returns `network(**given)`. Lists (as JSON has them) become tuples.

    `dtype` is the compute type, which is no property of the architecture, and neither is `remat`,
    which a clone may have. Raises InputError for missing, unknown or ill-typed fields, all named at
    once.
    """
    name = network.__name__
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    fields = {
        field.name: field
        for field in dataclasses.fields(network)
        if field.name not in ("parent", "name", "dtype", "remat")
    }
    required = {key for key, field in fields.items() if field.default is dataclasses.MISSING}
    if not required <= given.keys() <= fields.keys():
        raise InputError(
            f"{name}: found fields {', '.join(sorted(given)) or 'none'}; missing "
            f"{', '.join(sorted(required - given.keys())) or 'none'}; unknown "
            f"{', '.join(sorted(given.keys() - fields.keys())) or 'none'}; "
            f"expected {', '.join(fields)}"
        )
    for key, value in given.items():
        _check_type(f"{name}: {key}", value, fields[key].type)
        if fields[key].type is float:
            given[key] = float(value)  # JSON writes 2.0 as 2
    return network(**given, dtype=dtype)


def _check_type(what: str, value: Any, expected: Any) -> None:
    """Raises InputError unless `value` is of the annotated type of its field."""
    if expected == tuple[int, ...]:
        kind = "whole numbers in a list"
        good = isinstance(value, tuple) and all(type(item) is int and item >= 0 for item in value)
    elif expected is int:
        kind, good = "a positive int", type(value) is int and value > 0
    elif expected is float:
        kind, good = "a positive number", type(value) in (int, float) and value > 0
    else:
        kind, good = f"a {expected.__name__}", isinstance(value, expected)
    if not good:
        raise InputError(f"{what} is {value!r}, expected {kind}")
