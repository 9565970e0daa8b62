"""Offline HTML pages from values and run folders."""
