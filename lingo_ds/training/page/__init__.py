"""The page on a run, report.html: what of the run's files it shows, and in which words."""
