"""Experiment trackers that a run reports to besides its own files: one file each, behind `sink.Sink`."""
