"""anabranch: papers that run.

An anabranch is a branch of a river that leaves the main stream and rejoins it. Every paper here splits a flow, works on
the parts, and joins them again. See :mod:`anabranch.lab` for running papers and the library packages for their parts.
"""

__version__ = "0.1.0"
