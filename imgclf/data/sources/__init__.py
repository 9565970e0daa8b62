"""Kinds of data: folders, CSV files, tar shards, named sets."""
