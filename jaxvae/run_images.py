"""The images that a trained run belongs to, read again."""

from pathlib import Path

from jaxvae import data
from jaxvae.errors import InputError
from jaxvae.trained import TrainedRun


def images_of(
    run: TrainedRun,
    run_dir: Path,
    dataset: str | None = None,
    data_dir: str | None = None,
    labels: bool = False,
    given: data.ImageData | None = None,
) -> data.ImageData:
    """The images of a run, as its model sees them; those held out for validation are among the training images.

    Args:
      run: the loaded run.
      run_dir: its directory.
      dataset, data_dir: where the images are, if not where they were in training.
      labels: read labels, although the model does not, where the dataset has files of them.
      given: the images, if they are at hand.

    Raises:
      InputError: they cannot be read, or the test images (or, if the model reads them, their labels) are not the run's.
    """
    config = run.config
    if given is None:
        if dataset is None and config.dataset == data.GIVEN:
            raise InputError(
                f"{run_dir} was trained on data given in Python: name a --dataset with the same test images, "
                "or give it to jaxvae.evaluate.evaluate_run(images=...)"
            )
        named, folder = dataset or config.dataset, data_dir or config.data_dir
        given = data.load(named, folder, data.reading_of(config), labels=labels or config.reads_labels)
    data.for_run(config, given)  # It checks their labels.
    images = data.as_seen(given, config)
    # Imported weights have no digest of images.
    digest = run.record.get("test_images_sha256")
    if list(images.image_shape) != run.record["image_shape"] or digest not in (None, data.digest(images.test)):
        raise InputError(f"{images.source}: not the test images of {run_dir}")
    if config.reads_labels and run.record.get("test_label_sha256") != data.digest(images.split("test")["label"]):
        raise InputError(f"{images.source}: not the labels of the test images of {run_dir}")
    return images
