"""One picture by several processes, over MLX's own distributed engine (docs/distributed.md).

``mx.distributed`` transports everything (ring over TCP or Thunderbolt, jaccl, NCCL, MPI) and
``mlx.launch`` starts the processes. What is here joins their group, makes sure that all of them
make the same picture, gives each its part of a step, and ends all when one of them fails.

Not part of the public API: what is here may change in any release.
"""
