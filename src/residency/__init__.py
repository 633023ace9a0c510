"""Run language models in the memory you have, with a plan that says beforehand what will fit."""
