"""Where images come from: sources, the reader, the audit, the split, batches."""
