"""What XLA makes of a training step for an accelerator, which need not be here."""
