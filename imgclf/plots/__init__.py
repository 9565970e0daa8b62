"""Pictures to look at: matplotlib figures, Pillow grids."""
