"""The memory of a case, predicted on any machine: its own step under fake tensors, and the allocator simulated.

Nothing is computed and no device is touched. A prediction is shown beside what is measured and never stands in for it.

Not covered: code under torch.compile, scratch of libraries and kernels beyond what `record` names, memory that torch's
allocator does not hand out (context, kernels), and whatever a fault or a leak adds.
"""
