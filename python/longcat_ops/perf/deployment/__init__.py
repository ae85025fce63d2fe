"""What a deployment of a network with experts on many GPUs should reach: the analysis of the LongCat-Flash technical
report (arXiv:2509.01322, section 6) as a program.

`network` describes a network, `hardware` GPUs, links and what is reached of their peaks, `deployment` how they are
used, `step` the time and the cost of a decode step. `reported` has the report's tables beside it, `studies` varies it,
`solve` looks for the cheapest one, `calibration` reads measurements, `tables` makes text. These times are floors of
parts, added up as the report does; bands of this library's own kernels are `perf.step` and `perf.timeline`.
"""

from .deployment import Deployment
from .hardware import GPUS, REPORT, Efficiency, Gpu, Link
from .network import NETWORKS, Network, from_config
from .step import Result, evaluate

__all__ = ["GPUS", "NETWORKS", "REPORT", "Deployment", "Efficiency", "Gpu", "Link", "Network", "Result", "evaluate",
           "from_config"]  # fmt: skip
