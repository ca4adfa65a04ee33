"""Train from shards: `torchrun trainer/run.py [CONFIG] [key=value ...]`."""

import os
import sys

if __name__ == "__main__":
    # A script's own folder comes first on sys.path; put the repository root there instead, so that `import trainer`
    # resolves and no file in this folder can shadow another module.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

    from trainer.main import main

    sys.exit(main())
