"""The loop's device where that is a CUDA GPU. Imports PyTorch: only a plan with a device leads here."""
