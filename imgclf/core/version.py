"""The version, in the one place that the build, the model file and `imgclf --version` read."""

__version__ = "0.1.0"
