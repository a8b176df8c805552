"""From flags to the objects of a run: fields, settings, flags, assembly.

`fields` describes one setting. `settings` holds all settings of a run. `flags`
reads them from the command line. `assembly` turns them into task, feed,
mechanism and process. Settings of one way of training alone are in
`experiments.modes`.
"""
