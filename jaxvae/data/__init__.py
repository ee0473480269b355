"""Load images by name or path, validate them, binarise them and hold some out."""

from jaxvae.data.arrays import GIVEN, from_arrays
from jaxvae.data.images import (
    ImageData,
    Split,
    as_seen,
    binarized,
    contradicted,
    digest,
    digests,
    for_run,
    identity,
    prepared,
    reading_of,
    with_validation,
)
from jaxvae.data.reading import Images, Reading
from jaxvae.data.sources import DATASETS, FILE_DATASETS, is_named, labels_beside, load, load_for

__all__ = [
    "DATASETS",
    "FILE_DATASETS",
    "GIVEN",
    "ImageData",
    "Images",
    "Reading",
    "Split",
    "as_seen",
    "binarized",
    "contradicted",
    "digest",
    "digests",
    "for_run",
    "from_arrays",
    "identity",
    "is_named",
    "labels_beside",
    "load",
    "load_for",
    "prepared",
    "reading_of",
    "with_validation",
]
