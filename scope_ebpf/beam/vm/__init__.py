# SPDX-License-Identifier: Apache-2.0
"""
The virtual machine as a whole: identity, counters, schedulers, allocators.

- ``discover``: which processes are VMs, and of which release
- ``target``: one running VM, as its readers see it
- ``identity``, ``exec_watch``: one program of one process and one user; detects an exec
- ``proof``: whether a process has the memory of a VM
- ``constants``: offsets, atoms and addresses for the BPF programs
- ``node``: the current name of the node
- ``counters``, ``state``: the VM's own counters; utilization, run queues, memory
- ``allocators``, ``connections``: allocators and ``erlang:memory/0``; connections to other nodes
- ``schedulers``, ``scheduler_addresses``: what each scheduler does; where BPF programs read that
- ``threads``: threads as the kernel has them
- ``nifs``: which NIF a scheduler is in
"""
