"""The rows of the report's table: every number with its controls and one plain sentence."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Row:
    """One line: `key` and the keys in `controls` (label -> key) are fields of section `section`."""

    section: str
    key: str
    label: str
    controls: Mapping[str, str]
    meaning: str
    unit: str = ""

    def present(self, report: Mapping[str, Any]) -> bool:
        """Whether the report holds this number."""
        return report.get(self.section, {}).get(self.key) is not None

    def value(self, report: Mapping[str, Any]) -> str:
        """The number as printed."""
        return shown(report[self.section], self.key, self.unit)

    def control_values(self, report: Mapping[str, Any]) -> list[tuple[str, str]]:
        """(label, number as printed) of the controls that the report holds."""
        section = report[self.section]
        return [
            (label, shown(section, key, self.unit))
            for label, key in self.controls.items()
            if section.get(key) is not None
        ]


TITLES = {
    "patch": "Patches",
    "copying": "Copying",
    "large_image": "Large image",
    "autoencoder": "Autoencoder",
    "encoder": "Encoder",
    "train": "Training",
}

ROWS = (
    Row(
        "patch",
        "similarity",
        "Similarity to the embedding asked for",
        {
            "another patch asked for": "similarity_shuffled",
            "autoencoder (ceiling)": "similarity_reconstructions",
            "nearest training patch, copied": "nearest_train_similarity",
        },
        "The sample is embedded again and compared with the embedding it was made from: 1 is the "
        "same direction, 0 unrelated (cosine, after subtracting the mean training embedding).",
    ),
    Row(
        "patch",
        "retrieval_at_1",
        "Finds its own patch (retrieval@1)",
        {
            "another patch asked for": "retrieval_at_1_shuffled",
            "guessing": "chance",
            "autoencoder (ceiling)": "retrieval_at_1_reconstructions",
            "nearest training patch, copied": "nearest_train_retrieval_at_1",
        },
        "How often the patch that was asked for is the most similar of all held-out patches.",
    ),
    Row(
        "patch",
        "fd_samples",
        "FD (project encoder)",
        {
            "real held-out patches (floor)": "fd_real_real",
            "autoencoder": "fd_reconstructions",
            "nearest training patches, copied": "fd_nearest_train",
            "pixel noise": "fd_noise",
        },
        "Frechet distance from this set of images to the training patches; lower is closer. All "
        "values are of equally many images, since few images raise it. It is not the FID.",
    ),
    Row(
        "copying",
        "sample_distance",
        "Distance to the nearest training patch",
        {
            "real held-out patches": "real_distance",
            "training patches through the autoencoder": "copy_distance",
        },
        "A model that copies makes patches nearer to the training set than new real patches are, "
        "close to the value of a copy (1 \N{MINUS SIGN} cosine).",
    ),
    Row(
        "copying",
        "closer_than_real",
        "Suspiciously near to a training patch",
        {"real held-out patches, by definition": "closer_than_real_control"},
        "Share of samples nearer to a training patch than all but the nearest 5 % of real held-out "
        "patches are.",
    ),
    Row(
        "large_image",
        "similarity",
        "Similarity, grid cell by grid cell",
        {
            "another cell asked for": "similarity_shuffled",
            "autoencoder (ceiling)": "similarity_reconstruction",
        },
        "Each cell of the stitched image is embedded again and compared with the real cell there.",
    ),
    Row(
        "large_image",
        "retrieval_at_1",
        "Finds its own cell (retrieval@1)",
        {
            "another cell asked for": "retrieval_at_1_shuffled",
            "guessing": "chance",
            "autoencoder (ceiling)": "retrieval_at_1_reconstruction",
        },
        "How often the real cell at the same place is the most similar of all cells.",
    ),
    Row(
        "large_image",
        "seam",
        "Seam",
        {"real region, same lines": "seam_real", "autoencoder, same lines": "seam_reconstruction"},
        "Mean step between pixels across the borders of windows and cells, over the mean step "
        "elsewhere. A seam shows where it exceeds the real region's, which need not be 1: a "
        "slide's own JPEG blocks (8 px) may lie on the same lines.",
    ),
    Row(
        "large_image",
        "seam_in_phase",
        "Seam, in phase with 8 px",
        {
            "real region, same lines": "seam_in_phase_real",
            "autoencoder, same lines": "seam_in_phase_reconstruction",
        },
        "The same, but compared only with the other lines at multiples of 8 px, so that JPEG "
        "blocks and the decoder's own pattern cancel: 1 is no seam.",
    ),
    Row(
        "large_image",
        "sharpness",
        "Sharpness",
        {"autoencoder": "sharpness_reconstruction"},
        "Mean step between neighbouring pixels over that of the real region: below 1 is blurred, "
        "above 1 is noisy.",
    ),
    Row(
        "autoencoder",
        "psnr_db",
        "Reconstruction of held-out patches",
        {"each patch as its mean colour": "psnr_mean_colour_db"},
        "Peak signal-to-noise ratio; what the autoencoder loses no sampler can bring back.",
        unit="dB",
    ),
    Row(
        "encoder",
        "retrieval_at_1",
        "Recognises an altered patch (retrieval@1)",
        {
            "same network, random weights": "random_init_retrieval_at_1",
            "nearest in colour": "colour_retrieval_at_1",
            "guessing": "chance",
        },
        "Held-out patches, strongly cropped, turned, recoloured and blurred, look for themselves "
        "among the unaltered ones: tells whether the embedding holds tissue rather than stain.",
    ),
    Row(
        "train",
        "held_out_loss",
        "Denoising loss, held-out patches",
        {"no embedding": "held_out_dropped", "another patch's embedding": "held_out_shuffled"},
        "How well the network removes noise; lower is better. The right embedding has to help.",
    ),
)


def shown(numbers: Mapping[str, Any], key: str, unit: str = "", digits: int | None = None) -> str:
    """A number as printed: three decimals (one for dB), with its standard error where known."""
    if digits is None:
        digits = 1 if unit == "dB" else 3
    text = f"{numbers[key]:.{digits}f}"
    if numbers.get(f"{key}_se") is not None:
        text += f" ± {numbers[f'{key}_se']:.{digits}f}"
    text = text.replace("-", "\N{MINUS SIGN}")
    return f"{text} {unit}" if unit else text
