"""What is on the disk: model files and run folders."""
