"""From decoded images to what a model sees."""
