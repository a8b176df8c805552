"""From flags to the objects of a run: fields, settings, flags, assembly.

`fields` describes one setting, `settings` holds all of a run, `flags` reads them
from the command line, and `assembly` turns them into task, feed, mechanism and
process. What only one way of training needs stands in `experiments.modes`.
"""
