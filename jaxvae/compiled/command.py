"""What ``python -m jaxvae.benchmark --compile-for`` prints and writes."""

import dataclasses
import importlib.metadata
from collections.abc import Sequence
from typing import Any

from jaxvae.cli import number
from jaxvae.compiled.report import Report, compile_for
from jaxvae.config import Config, describe
from jaxvae.data.images import ImageData
from jaxvae.memory import in_words
from jaxvae.train.cost import flops_per_step, products_of

LARGEST = 8  # Kernels that are printed.


def compile_only(name: str, sized: Sequence[Config], images: ImageData) -> dict[str, Any]:
    """Compile training for an accelerator, and print what a step does and how long it should take.

    Args:
      name: of the accelerator, see `jaxvae.compiled.accelerators.described`.
      sized: a configuration for each batch size.
      images: to train on.

    Returns:
      All that was found, to be written as JSON.

    Raises:
      InputError: see `compile_for`.
    """
    results: list[dict[str, Any]] = []
    model = describe(sized[0], without=("batch_size",))
    for config in sized:
        flops, missed = flops_per_step(config, images)
        accelerator, devices, report = compile_for(name, config, images, flops)
        if not results:
            print(
                f"compiled for {devices} x {accelerator.name} with jax {importlib.metadata.version('jax')}: nothing ran"
            )
            print(f"{model}, on {images.name}:")
            parts = "kernels + work" + (" + exchange" if devices > 1 else "")
            print(f"batch kernels  chain collectives     memory  MFLOP/step   MB/step  predicted: step = {parts}")
        seconds = report.seconds(accelerator, products_of(config))
        print(_line(config.batch_size, report, seconds), flush=True)
        results.append(
            {
                "batch_size": config.batch_size,
                "products": products_of(config),
                "kernels_per_step": report.count,
                "chain": report.chain,
                "collectives_per_step": sum(each.times for each in report.collectives),
                "collective_bytes_per_step": report.exchanged,
                "program_bytes": report.program_bytes,
                "flops_per_step": report.flops,
                "flops_not_counted": missed,
                "bytes_per_step": report.nbytes,
                "predicted_seconds": seconds,
                "kernels": [each._asdict() for each in report.kernels],
            }
        )
    print("the kernels that move most, of a step of the last batch size:")
    for each in sorted(report.kernels, key=lambda each: each.times * each.nbytes, reverse=True)[:LARGEST]:
        print(f"  {each.times:>3} x {number(each.nbytes / 1e6):>8} MB  {each.name}")
    if report.program_bytes > accelerator.memory:
        print(f"note: {accelerator.name} has {in_words(accelerator.memory)}: this does not fit")
    return {
        "compiled_for": dataclasses.asdict(accelerator),
        "devices": devices,
        "jax": importlib.metadata.version("jax"),
        "model": model,
        "results": results,
    }


def _line(batch_size: int, report: Report, seconds: dict[str, float]) -> str:
    collectives = sum(each.times for each in report.collectives)
    parts = " + ".join(f"{number(1e6 * each)}" for each in seconds.values() if each)
    total = sum(seconds.values())
    return (
        f"{batch_size:>5} {report.count:>7} {report.chain:>6} {collectives:>11} {in_words(report.program_bytes):>10} "
        f"{number(report.flops / 1e6):>11} {number(report.nbytes / 1e6):>9}  {number(1e6 * total)} us = {parts}: "
        f"{number(1 / total)} steps/s"
    )
