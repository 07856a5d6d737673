"""The report as one self-contained HTML page: pictures inlined, nothing loaded from elsewhere."""

import dataclasses
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ssl_diffusion.evaluation import report_pictures, table
from ssl_diffusion.evaluation.large_numbers import LargeImage
from ssl_diffusion.evaluation.patch_section import PatchPictures
from ssl_diffusion.evaluation.style import CSS
from ssl_diffusion.webpage import data_url, details, document, facts, section

SPACES = {  # intro of a space's numbers
    "encoder": "The space of the encoder whose embeddings condition the model: the model was made "
    "to please it.",
    "judge": "An independent encoder: it played no part in making the model.",
    "given": "An encoder that was given as independent: whether it played a part in making the "
    "model is for whoever gave it to know.",
}
SEEN_BY = {"encoder": "the conditioning encoder", "judge": "the judge"}


@dataclasses.dataclass
class Pictures:
    """What the page shows beside numbers; None or empty where it was not asked for."""

    patches: PatchPictures | None = None
    large: Sequence[LargeImage] = ()
    losses: Sequence[tuple[int, float]] | None = None


def html_page(
    report: Mapping[str, Any],
    pictures: Pictures,
    *,
    loss_png: bytes | None,
    settings: Mapping[str, Any],
) -> str:
    """The page. `report` is what report.json holds; sections whose input is absent are left out."""
    sections = [
        _summary(report),
        report_pictures.large_images(pictures.large),
        *([_patches(report, pictures.patches)] if pictures.patches else []),
        _large_image(report["large_image"], report) if "large_image" in report else "",
        _models(report),
        _training(report["train"], loss_png) if loss_png else "",
        _pinned(report["pinned"]) if "pinned" in report else "",
        _run(report),
        _limits(report),
        _settings(settings),
    ]
    return document("Images generated from embeddings", CSS, "".join(sections))


def _intro(name: str, report: Mapping[str, Any]) -> str:
    """What a space is, in a sentence."""
    if name == "judge" and not _ships(report):
        name = "given"
    return SPACES.get(name, "A further network.")


def _ships(report: Mapping[str, Any]) -> bool:
    """Whether the judge is the project's own, of which it is known how it was made."""
    spaces = report.get("pinned", {}).get("spaces", {})
    return bool(spaces.get("judge", {}).get("ships"))


def _seen_by(name: str) -> str:
    return escape(SEEN_BY.get(name, name))


def _summary(report: Mapping[str, Any]) -> str:
    sentences = []
    if large := report.get("large_image"):
        several = f"{large['images']} images were" if large["images"] > 1 else "An image was"
        sizes = ", ".join(f"{width} × {height}" for width, height in large["sizes_px"])
        sentences.append(
            f"{several} stitched from the embeddings of real regions ({sizes} px) in "
            f"{large['seconds']:.0f} s."
        )
    if (patch := report.get("patch")) and patch["paired"]:
        for name, space in patch["spaces"].items():
            if "chance" not in space:
                continue
            found = space["sets"]["samples"]["retrieval_at_1"]["value"]
            judge = "an independent judge" if _ships(report) else "a judge given as independent"
            who = "the conditioning encoder" if name == "encoder" else judge
            sentences.append(
                f"Of {patch['count']} single patches {found:.0%} are recognised by {who} as the "
                f"held-out patch that was asked for, among {round(1 / space['chance'])} (a guess: "
                f"{space['chance']:.1%})."
            )
    elif patch:
        sentences.append(f"{patch['count']:,} patches are compared with real ones as a set.")
    if report.get("pinned", {}).get("records", {}).get("unseen"):
        sentences.append("The real images are of a source that was not in training.")
    lead = f'<p class="lead">{" ".join(sentences)}</p>\n'
    remarks = table.warnings_list(report.get("remarks", ()))
    return f"<h1>Images generated from embeddings</h1>\n{lead}{remarks}"


def _patches(report: Mapping[str, Any], pictures: PatchPictures) -> str:
    patch, parts = report["patch"], [report_pictures.pairs(pictures.pairs, report["patch"])]
    for name, space in patch["spaces"].items():
        chance = f" Retrieval by a guess: {space['chance']:.1%}." if "chance" in space else ""
        asked = (
            " The column of another embedding holds the same images, had each been asked for "
            "another patch: as a set they are the samples."
            if "shuffled" in space["sets"]
            else ""
        )
        intro = (
            f"{_intro(name, report)} {space['sets']['samples']['n']:,} images "
            f"against {space['reference_n']:,} real reference patches, in {space['dimension']:,} "
            f"dimensions.{chance}{asked} Below each number is its 95 % interval."
        )
        parts.append(
            section(
                f"Patches, seen by {_seen_by(name)}",
                intro,
                table.warnings_list(space["warnings"])
                + table.matrix(table.SETS, space["sets"], **titles(space["title"]))
                + report_pictures.plots(
                    pictures.plots, (f"similarity_{name}", f"components_{name}")
                ),
            )
        )
    if copying := report.get("copying"):
        parts.append(_copying(copying, pictures))
    return "".join(parts)


def _copying(copying: Mapping[str, Any], pictures: PatchPictures) -> str:
    sets = {
        "samples": {
            "distance": copying["sample_distance"],
            "ratio": copying["distance_ratio"],
            "closer": copying["closer_than_real"],
            "flagged": copying.get("flagged"),
        },
        "real": {
            "distance": copying["real_distance"],
            "ratio": 1.0,
            "closer": copying["closer_than_real_control"],
            "flagged": copying.get("flagged_held_out"),
        },
    }
    if "copy_distance" in copying:
        sets["copies"] = {"distance": copying["copy_distance"]}
    return section(
        "Copying",
        "Whether samples are training patches again. Distances are in the conditioning encoder's "
        "space.",
        table.matrix(table.COPYING, sets)
        + report_pictures.plots(pictures.plots, ("distances",))
        + report_pictures.copies(pictures.copies, copying),
    )


def _large_image(large: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    crops = large["crops"]
    parts = []
    for name, cells in large["cells"].items():
        intro = (
            f"{_intro(name, report)} {cells['count']:,} cells, each looks for the real cell at its "
            f"place among those of its image (a guess: {cells['chance']:.1%}). "
            "Intervals are over cells."
        )
        parts.append(
            f"<h3>Grid cells, seen by {_seen_by(name)}</h3><p>{intro}</p>"
            + table.matrix(table.SETS, cells["sets"])
        )
    parts.append(
        "<h3>Pixels</h3>"
        "<p>The same lines in all three; intervals are over images, from five on.</p>"
        + table.matrix(table.PIXELS, large["pixels"]["sets"])
    )
    kinds = {
        "crop_spaces": f"{crops['of_each_image']:,} random crops of {crops['size_px']} px of each "
        "image, at the same positions in every column, against crops of the real regions at "
        "others. Crops overlap: intervals are too narrow for few images.",
        "whole_spaces": "Whole images, resized by the network's own rule.",
    }
    for key, intro in kinds.items():
        for name, space in large.get(key, {}).items():
            heading = {"crop_spaces": "Crops", "whole_spaces": "Whole images"}[key]
            prefix = {"crop_spaces": "Crop-", "whole_spaces": "Whole images: "}[key]
            parts.append(
                f"<h3>{heading}, seen by {_seen_by(name)}</h3><p>{intro}</p>"
                + table.warnings_list(space["warnings"])
                + table.matrix(table.SETS, space["sets"], **titles(space["title"], prefix))
            )
    return section("Large images: numbers", "", "".join(parts))


def titles(frechet: str, prefix: str = "") -> dict[str, str]:
    """What the distances in a space are called, by its Frechet distance: KID is FID's network's."""
    if frechet.startswith("FID"):
        kernel = "KID" + frechet[len("FID") :]
    else:
        kernel = "kernel distance" + (frechet.removeprefix("FD") if "(" in frechet else " (CLIP)")
    kernel = prefix + kernel
    return {"title": prefix + frechet, "kernel": kernel[0].upper() + kernel[1:]}


def _models(report: Mapping[str, Any]) -> str:
    parts = []
    if numbers := report.get("encoder"):
        sets = {
            "trained": {"retrieval_at_1": numbers["retrieval_at_1"]},
            "random": {"retrieval_at_1": numbers["random_init_retrieval_at_1"]},
            "colour": {"retrieval_at_1": numbers["colour_retrieval_at_1"]},
            "chance": {"retrieval_at_1": numbers["chance"]},
        }
        columns = {
            "trained": "Trained encoder",
            "random": "Same network, random weights",
            "colour": "Nearest in colour",
            "chance": "Guessing",
        }
        parts.append(table.matrix(table.ENCODER, sets, columns))
    if numbers := report.get("autoencoder"):
        sets = {
            "trained": {"psnr": numbers["psnr_db"]},
            "flat": {"psnr": numbers["psnr_mean_colour_db"]},
        }
        columns = {"trained": "Autoencoder", "flat": "Each patch as its mean colour"}
        parts.append(table.matrix(table.AUTOENCODER, sets, columns))
    train = report.get("train", {})
    if "held_out_loss" in train:
        sets = {
            "right": {"loss": train["held_out_loss"]},
            "shuffled": {"loss": train.get("held_out_shuffled")},
            "dropped": {"loss": train.get("held_out_dropped")},
        }
        columns = {
            "right": "Its own embedding",
            "shuffled": "Another patch's embedding",
            "dropped": "No embedding",
        }
        parts.append(table.matrix(table.TRAIN, sets, columns))
    return section("Encoder, autoencoder, denoiser", "", "".join(parts)) if parts else ""


def _training(train: Mapping[str, Any], loss_png: bytes) -> str:
    rate = train["images_per_second"]  # None for a run too short to time
    speed = f" at {rate:.0f} images per second" if rate else ""
    return section(
        "Training",
        f"{train['steps']:,} steps{speed}; final loss {train['final_loss']:.4f}.",
        f'<img class="loss" alt="training loss over the step" src="{data_url(loss_png)}">',
    )


def _pinned(pinned: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in _flat(pinned)
    )
    return section(
        "Pinned",
        "What moves these numbers. To compare with them, keep all of it: another count, resize "
        "filter or file format alone changes a Frechet distance.",
        f'<div class="wide"><table class="run pinned">{rows}</table></div>',
    )


def _flat(tree: Any, path: str = "") -> list[tuple[str, str]]:
    """(path, value) of every leaf, without those that are None."""
    if isinstance(tree, Mapping):
        return [
            pair
            for name, value in tree.items()
            for pair in _flat(value, f"{path} › {name}" if path else str(name))
        ]
    if isinstance(tree, (list, tuple)) and any(isinstance(one, Mapping) for one in tree):
        return _flat({str(number): one for number, one in enumerate(tree)}, path)
    if isinstance(tree, (list, tuple)):
        tree = ", ".join(map(str, tree))
    return [] if tree is None else [(path, str(tree))]


def _run(report: Mapping[str, Any]) -> str:
    return section(
        "Time and machine",
        "Seconds of each stage, and the machine that made this report.",
        f'<div class="columns"><div>{facts("Seconds", report["seconds"])}</div>'
        f"<div>{facts('Hardware', report['hardware'])}</div>"
        f"<div>{facts('Versions', report['versions'])}</div></div>",
    )


def _limits(report: Mapping[str, Any]) -> str:
    points = [
        "FD is the FID only where its name says so: with the Inception network whose weights are "
        "pinned above. FD (project encoder) compares with other values on this page alone.",
        "One training run: the intervals tell how the numbers would move with other images, not "
        "with another run. They take images as independent; neighbours on a slide are not, so that "
        "true intervals are wider.",
        "These images are for research into generative models, not for diagnosis.",
    ]
    spaces = report.get("patch", {}).get("spaces", {}) or report.get("large_image", {}).get(
        "cells", {}
    )
    if "judge" not in spaces:
        points.insert(
            0,
            "The encoder that conditions the generator also judges it. Similarity, retrieval and "
            "FD (project encoder) could be won by images that please the encoder and not the eye: "
            "look at the pictures too.",
        )
    if not report.get("pinned", {}).get("records", {}).get("unseen"):
        points.insert(
            1,
            "Held-out patches come from regions that no training patch touches, but may be of the "
            "same slides: nothing here speaks for another slide, laboratory or scanner.",
        )
    if "copying" in report:
        points.insert(
            2,
            "Copying the nearest training patch scores high on every measure that uses an "
            "embedding. A high similarity alone is no achievement: read it beside Copying.",
        )
    items = "".join(f"<li>{escape(point)}</li>" for point in points)
    return section("Limits", "What these numbers do not show.", f"<ul>{items}</ul>")


def _settings(settings: Mapping[str, Any]) -> str:
    if not settings:
        return ""
    blocks = "".join(details(name, value) for name, value in settings.items())
    return section("Settings", "Everything that was set, as the commands recorded it.", blocks)
