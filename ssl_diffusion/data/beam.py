"""The units of work of `prepare` as an Apache Beam pipeline, for clusters.

Every worker sees the same files, in the same places, and has this package installed. The pipeline
carries nothing but the numbers of the units: what a unit gives lies in the folder of the work.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from ssl_diffusion.errors import InputError


def share(data: ConfigDict, work: Path, numbers: Sequence[int], options: Sequence[str]) -> None:
    """Does these units of the work begun in `work`, in a pipeline of these options, and waits.

    Raises InputError without Apache Beam.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise InputError(
            "--beam needs Apache Beam: pip install 'ssl-diffusion[beam]'; several processes and "
            "hosts share the work without it by --shard"
        ) from None
    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        units = pipeline | beam.Create(list(numbers)) | beam.Reshuffle()
        _ = units | beam.Map(do_unit, data.to_json(), str(work))


def do_unit(number: int, section: str, work: str) -> int:
    """One unit, in whichever process; its number."""
    from ssl_diffusion.prepare import prepare_unit

    prepare_unit(ConfigDict(json.loads(section)), Path(work), number)
    return number
