"""One offline page that tells a person how good a model is, and why."""
