"""Two Ray nodes of one core each here, until stdin ends; prints the address, then how many of them had work.

python two_ray_nodes.py
"""

import select
import sys
import time

import ray
from ray._private.state import available_resources_per_node
from ray.cluster_utils import Cluster

SIZES = {"num_cpus": 1, "object_store_memory": 80 << 20, "memory": 1 << 30}


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={**SIZES, "include_dashboard": False})
    cluster.add_node(**SIZES)
    cluster.wait_for_nodes()
    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
    print(cluster.address, flush=True)
    busy: set[str] = set()
    while not select.select([sys.stdin], [], [], 0)[0]:
        busy |= {node for node, left in available_resources_per_node().items() if not left.get("CPU")}
        time.sleep(0.05)
    ray.shutdown()
    cluster.shutdown()
    print(len(busy), flush=True)


if __name__ == "__main__":
    main()
