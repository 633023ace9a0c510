"""Write a GGUF file's model with all its matrices in float16, as `python benchmarks/to_float16.py IN.gguf OUT.gguf`.

For measuring how near to the memory's rate decode comes where nothing is to be unpacked. Needs the package `gguf`.
"""

import sys

import gguf
import numpy as np


def main() -> None:
    """Copy the fields as they are, and the tensors unpacked."""
    source, target = sys.argv[1:]
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        kind, *element = field.types
        writer.add_key_value(field.name, field.contents(), kind, element[-1] if element else None)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, values.astype(np.float16 if values.ndim == 2 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file(progress=True)
    writer.close()


if __name__ == "__main__":
    main()
