"""One run over many processes, on one machine or on many: plan once, share i of n, finish once.

plans.py    the plan that the first share makes and the others read
shares.py   a share: its tasks, and the end of the run where it is the last
engines.py  shares started by datatrove's executors: this machine, Slurm, Ray
"""
