"""Instruction data from captions and boxes, written by a language model that sees only these (LLaVA, section 3).

sources.py   COCO's json or jsonl -> Record
prompts.py   what is asked, named and versioned, an example with each
answers.py   a reply -> questions and answers, or the reason why not
objects.py   what an answer names that stands neither in the captions nor in the boxes
making.py    the order of the steps
"""
