"""Runs a script that trains with TRL, and saves the initial adapter to a folder before training.

    python with_initial_adapter.py FOLDER SCRIPT [ARGUMENTS]
"""

import runpy
import sys

from trl import DPOTrainer

folder, script = sys.argv[1:3]
sys.argv = sys.argv[2:]
train = DPOTrainer.train


def save_and_train(self, *arguments, **named):
    self.model.save_pretrained(folder)
    return train(self, *arguments, **named)


DPOTrainer.train = save_and_train
runpy.run_path(script, run_name="__main__")
