"""A checkpoint in, a smaller checkpoint out: rounding, GPTQ and AWQ, layer by layer in bounded memory."""
