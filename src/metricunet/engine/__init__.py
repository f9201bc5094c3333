"""Work that is shared out: to processes of Ray on this machine or on many, or done here, one after the other.

Whoever has tasks hands them to an `Engine`, with a function that makes a worker: an object that holds what all its
tasks need, such as a model. The engine makes one in each process, gives it one task at a time, and yields what
came of each task as it is done. So no more comes back at once than the caller takes, and nothing but tasks and
results goes from machine to machine: a scan is read where it is segmented.

The claim of a task is held here, by the process that shares it out, and not by the worker: a machine that is lost
takes no claim with it. Ray is an extra. It is imported when an engine of it is opened.

`interface` is what an engine is, `serial` the one that needs nothing; `opening` starts Ray or joins it,
`ray_engine` shares out to it, `ray_worker` is what runs in its processes, and `folders` finds what a machine does
not see.
"""

from metricunet.engine.interface import GIB, Claim, Engine, Needs, Tell, Watch, Worker
from metricunet.engine.opening import opened
from metricunet.engine.serial import Serial

__all__ = ["GIB", "Claim", "Engine", "Needs", "Serial", "Tell", "Watch", "Worker", "opened"]
