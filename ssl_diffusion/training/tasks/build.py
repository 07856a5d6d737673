"""The tasks by the name that a config gives them."""

from ssl_diffusion.training.tasks.autoencoder import AutoencoderTask
from ssl_diffusion.training.tasks.denoiser import DenoiserTask
from ssl_diffusion.training.tasks.dino import DinoTask
from ssl_diffusion.training.tasks.encoder import EncoderTask
from ssl_diffusion.training.tasks.prior import PriorTask

TASKS = {
    "denoiser": DenoiserTask,
    "autoencoder": AutoencoderTask,
    "encoder": EncoderTask,
    "dino": DinoTask,
    "prior": PriorTask,
}
