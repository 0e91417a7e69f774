"""``python3 -m labsupport``: standard library only until the environment exists.

The parts: ``cli`` (commands), ``installation`` (the environment), ``running`` (labs without a browser), ``lab_paths``
and ``notebook_files`` (which labs, and their files), ``kernel_startup`` (errors in plain words), ``doctor``,
``findings`` and ``import_probes`` (what is wrong with this machine).
"""
