"""A local page to touch the latents of a trained model: ``python -m jaxvae.explore RUN_DIR``. Needs Bokeh."""
