"""From images to batches: readers ahead, stores of pixels, the loader."""
