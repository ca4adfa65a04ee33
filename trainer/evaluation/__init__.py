"""How good a model is: benchmarks that ask it, answers in a file, and scores of that file.

    benchmarks/   raw benchmark -> questions           one file a layout; BENCHMARKS, a table written out by hand
    run.py        questions -> answers                 the command; session.py, plan.py and answering.py do it
    answers.py    the file of answers                  the original LLaVA's jsonl, with all that scoring needs
    score.py      answers -> table                     the command; scoring.py and table.py do it
    metrics.py    one answer -> one verdict            choices.py and vqa.py for those that take more
    bootstrap.py  how far a score would move with other pictures

Asking and scoring are apart: answers cost hours of a GPU, and are scored as often as one likes.
"""
