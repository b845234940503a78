"""What benchmarks/gpu.sh does on a machine with a GPU: builds the kernels, tests and measures them.

``run`` starts one step after another, each in a process with a time limit of its own (``process``), and writes what
they report into gpu.json at once (``document``). ``plan`` says which steps there are and how large everything is;
``standins`` takes the GPU's place in a rehearsal. Every other module is a job, of which a step is one call.
"""
