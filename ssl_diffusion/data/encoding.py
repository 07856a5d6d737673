"""What is stored beside images: embeddings, patch tokens and latents, in chunks of one size."""

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ssl_diffusion.data.origins import Collection
from ssl_diffusion.data.writer import Layout
from ssl_diffusion.encoders.encoder import SSLEncoder
from ssl_diffusion.errors import InputError
from ssl_diffusion.weights.encoder import load_encoder
from ssl_diffusion.weights.model import CHUNK, FirstStage, load_autoencoder

# Relative error up to which arrays are by the same model: other number formats, a resize.
SAME = 0.1


class Encoding:
    """The models of a recipe, at work.

    Every patch is embedded and encoded in a chunk that is padded to a fixed size, so that what is
    stored does not depend on what it was batched with. Every variant of a patch is embedded and
    encoded itself: a flipped latent is not the latent of the flipped image. Arrays that origins
    bring are taken as they are. Raises InputError for entries of the recipe that its models cannot
    serve.
    """

    def __init__(self, recipe: Mapping[str, Any], collection: Collection):
        self._recipe, self._collection = recipe, collection
        self._compared = False
        self.encoder: SSLEncoder | None = None
        self.first_stage: FirstStage | None = None
        if recipe["encoder"]:
            self.encoder = load_encoder(recipe["encoder"], recipe["patch_px"])
        if recipe["autoencoder"]:
            self.first_stage = load_autoencoder(recipe["autoencoder"])
        self._check()

    def _check(self) -> None:
        recipe, brought = self._recipe, self._collection
        if recipe["patch_tokens"] and not self.encoder:
            raise InputError("config.data.patch_tokens needs an encoder; name one in data.encoder")
        if recipe["posterior"] and not (self.first_stage and not self.first_stage.network.codebook):
            found = "which quantises vectors and has no posterior"
            if not self.first_stage:
                found = "which is none"
            raise InputError(
                f"config.data.posterior needs a KL autoencoder; found {recipe['autoencoder']!r}, "
                f"{found}: name another in data.autoencoder, or set posterior to False"
            )
        if self.first_stage and recipe["patch_px"] % self.first_stage.network.factor:
            raise InputError(
                f"patches of {recipe['patch_px']} px, expected a multiple of the "
                f"{self.first_stage.network.factor} px that the autoencoder makes one latent of"
            )
        if (brought.embedding or brought.latent) and recipe["variants"] > 1:
            raise InputError(
                f"config.data.variants is {recipe['variants']}, but {recipe['source']} brings "
                "embeddings or latents of the patches as they are; set it to 1"
            )

    @property
    def needs_pixels(self) -> bool:
        """Whether anything is computed of pixels, or compared with what is."""
        return bool(self.encoder or self.first_stage)

    @cached_property
    def layout(self) -> Layout:
        """What the records have."""
        recipe, brought = self._recipe, self._collection
        embedding, latent, posterior = brought.embedding, brought.latent, brought.latent_std
        if self.encoder and not embedding:
            told = self.encoder.spec["embedding"]
            embedding = told["tokens"], told["dim"]
        if self.first_stage and not latent:
            network, posterior = self.first_stage.network, recipe["posterior"]
            side = recipe["patch_px"] // network.factor
            latent = side, side, network.latent_channels
        return Layout(
            embedding=embedding,
            latent=latent,
            posterior=posterior,
            tokens=self.encoder.patch_tokens if recipe["patch_tokens"] else None,
            variants=recipe["variants"] > 1,
            classes=brought.classes,
            text=any(origin.text for origin in brought.origins),
        )

    @property
    def metadata(self) -> dict[str, Any]:
        """What the description says of the arrays."""
        layout, said = self.layout, {}
        if layout.embedding:
            said["embedding"] = dict(zip(("tokens", "dim"), layout.embedding, strict=True))
        if layout.tokens:
            said["tokens"] = dict(zip(("count", "dim"), layout.tokens, strict=True))
        if self.first_stage:
            said["latent"] = self.first_stage.spec["latent"]
        elif layout.latent:
            shift, scale = self._collection.latent_scaling
            said["latent"] = {"shift": shift, "scale": scale}
        return said

    def warn_of_another_split(self, split_sha256: str) -> None:
        """Logs which of the models was trained with another split than the records'."""
        for name, model in (("encoder", self.encoder), ("autoencoder", self.first_stage)):
            theirs = model.spec.get("trained", {}).get("split_sha256") if model else None
            if theirs not in (None, split_sha256):
                logging.warning(
                    "the %s was trained with another split; held-out figures are honest only if it "
                    "saw none of these held-out patches",
                    name,
                )

    def fields(
        self, pixels: UInt8[np.ndarray, "n h w 3"], examples: Sequence[Mapping[str, Any]]
    ) -> dict[str, np.ndarray]:
        """Arrays [n, ...] by feature, of one patch or more, besides those that examples bring.

        Raises InputError if what the first of them bring is not what the named models make.
        """
        if not self._compared:
            self._compare(pixels[:CHUNK], examples[:CHUNK])
            self._compared = True
        fields: dict[str, np.ndarray] = {}
        if self.encoder and self._recipe["patch_tokens"]:
            fields["embedding"], tokens = self.encoder.embed_with_patches(pixels)
            fields["tokens"] = tokens.astype(np.float16)
        elif self.encoder and not self._collection.embedding:
            fields["embedding"] = self.encoder.embed(pixels)
        if self._collection.embedding:
            fields.pop("embedding", None)
        if not self.first_stage or self._collection.latent:
            return fields
        if self._recipe["posterior"]:
            mean, deviation = self.first_stage.posterior(pixels)
            fields["latent"] = mean.astype(np.float16)
            fields["latent_std"] = deviation.astype(np.float16)
        else:
            fields["latent"] = self.first_stage.encode(pixels).astype(np.float16)
        return fields

    def _compare(
        self, pixels: UInt8[np.ndarray, "n h w 3"], examples: Sequence[Mapping[str, Any]]
    ) -> None:
        """A model that is named beside arrays that are there should be the one that made them."""
        for name, model, made_by in (
            ("embedding", "encoder", self.encoder and self.encoder.embed),
            ("latent", "autoencoder", self.first_stage and self.first_stage.encode),
        ):
            if not getattr(self._collection, name) or not made_by:
                continue
            theirs = np.stack([example[name] for example in examples]).astype(np.float32)
            ours = made_by(pixels)
            if theirs.shape != ours.shape:
                raise InputError(
                    f"{self._recipe['source']} brings each {name} as {list(theirs.shape[1:])}, but "
                    f"{self._recipe[model]} makes {list(ours.shape[1:])}; name the {model} that "
                    "made them, or none"
                )
            error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
            if not error < SAME:
                raise InputError(
                    f"{self._recipe['source']} brings every {name}, of which what "
                    f"{self._recipe[model]} makes differs by {error:.2f} of its size; name the "
                    f"{model} that made them, or none"
                )
