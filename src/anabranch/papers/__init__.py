"""One small folder a paper: what it claims (``__init__.py``) and the experiment that checks it (``experiment.py``)."""
