"""Read memory as fast as the processor can, to measure how fast that is."""

from residency.kernels.simd.language import as_i32, load_u8x64, store_i32, sum_i32, xor_u8


def read(start, num_bytes, sink):
    """Read `num_bytes` (a multiple of 512) from `start`; a word in `sink` keeps the loads from being dropped."""
    a = load_u8x64(start)
    b = load_u8x64(start + 64)
    c = load_u8x64(start + 128)
    d = load_u8x64(start + 192)
    for offset in range(0, num_bytes, 512):
        at = start + offset
        a = xor_u8(a, load_u8x64(at))
        b = xor_u8(b, load_u8x64(at + 64))
        c = xor_u8(c, load_u8x64(at + 128))
        d = xor_u8(d, load_u8x64(at + 192))
        a = xor_u8(a, load_u8x64(at + 256))
        b = xor_u8(b, load_u8x64(at + 320))
        c = xor_u8(c, load_u8x64(at + 384))
        d = xor_u8(d, load_u8x64(at + 448))
    store_i32(sink, sum_i32(as_i32(xor_u8(xor_u8(a, b), xor_u8(c, d)))))


read.is_driver = True

KERNELS = {"read": read}
