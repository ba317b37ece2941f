"""Every setting with its type, unit, default and sentence; recipes, suites and known tasks."""
