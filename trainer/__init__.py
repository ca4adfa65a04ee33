"""Shards -> weights: the lean LLaVA model, packing without padding, and the training loop.

A CUDA device is needed to train at full size, none to import or to test anything in here.
"""
