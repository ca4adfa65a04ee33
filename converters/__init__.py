"""Weights between formats, through the trainer's names.

The trainer's names are the hub: each format has one table to them, and any pair of formats goes through it. Reading
gives a `Hub` (config, lazy tensors, tokenizer files), writing takes one; tensors stream through one at a time.
"""
