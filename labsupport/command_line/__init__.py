"""``python3 -m labsupport``: standard library only until the environment exists.

The parts: ``cli`` (commands), ``installation`` (the environment), ``running`` (labs without a browser), ``doctor``,
``findings`` and ``import_probes`` (what is wrong with this machine).
"""
