"""Where a run can be followed while it goes on: a file a sink, and what they are told."""
