"""``python3 -m labsupport``: standard library only until the environment exists.

The parts: ``cli`` (commands), ``installation`` (the environment), ``running`` (labs without a browser), ``lab_paths``
and ``notebook_files`` (which labs, and their files), ``opening`` and ``kernel_startup`` (JupyterLab and its
kernels), ``doctor``, ``findings`` and ``import_probes`` (what is wrong with this machine).
"""
