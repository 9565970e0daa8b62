"""What every room uses: errors, settings, results, files; no torch, no images."""
