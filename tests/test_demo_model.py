"""The denoiser that ships: it stands on the encoder and autoencoder that ship, and works."""

import numpy as np

from ssl_diffusion import demo
from ssl_diffusion.data.records import open_records
from ssl_diffusion.diffusion.sampling import Sampling
from ssl_diffusion.evaluation.agreement import agreement
from ssl_diffusion.files import sha256
from ssl_diffusion.sample import sample
from ssl_diffusion.weights.folder import WEIGHTS, part_of
from ssl_diffusion.weights.model import load_model


def test_it_shares_the_parts_that_ship(run_dir):
    for name, own in (("encoder", demo.ENCODER), ("autoencoder", demo.AUTOENCODER)):
        assert part_of(demo.MODEL, name) == demo.resolve(own)
        assert part_of(run_dir / "model", name) == run_dir / "model" / name


def test_samples_show_what_they_were_asked_for(records_dir):
    model = load_model(demo.MODEL)
    assert model.sha256 == sha256(demo.resolve(demo.MODEL) / WEIGHTS)
    source = open_records(records_dir).source("test", ("embedding",))
    embedding = np.stack([source[i]["embedding"] for i in range(0, 128, 8)])
    sampling = Sampling(4, 1.5, solver="dpmpp")
    plan = sampling.plan(model.schedule)
    denoisers = sampling.denoisers(model.schedule, plan, model.denoiser)
    images = sample(model, plan, denoisers, embedding, np.arange(16), seed=0)
    found = model.encoder.embed(images).reshape(16, -1)
    gallery = embedding.reshape(16, -1)
    told = agreement(found, gallery, np.arange(16), gallery.mean(axis=0))
    assert told.similarity.mean() > 0.4 and abs(told.similarity_shuffled.mean()) < 0.2
    assert told.retrieved.mean() > 0.5
