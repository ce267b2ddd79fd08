# SPDX-License-Identifier: Apache-2.0
"""
The dashboards as data: one module of panels per dashboard, and a builder that knows Grafana.

``records`` says what a panel is, ``colours`` what colours mean, ``nodes`` how nodes are distinguished; ``panels`` and ``frame`` turn records
into Grafana's model. To add a panel is to add a record to a table.
"""

from boards import (
    distribution,
    genservers,
    memory,
    observer,
    overview,
    processes,
    schedulers,
    start,
    telemetry,
)

#: In the order in which the links at the top of each dashboard list them.
BOARDS = (
    start.BOARD,
    overview.BOARD,
    schedulers.BOARD,
    processes.BOARD,
    genservers.BOARD,
    telemetry.HTTP,
    telemetry.LIVE_VIEW,
    telemetry.DATABASE,
    telemetry.JOBS,
    memory.BOARD,
    distribution.BOARD,
    observer.BOARD,
)

__all__ = ["BOARDS"]
