"""The CRC-32 of zeros without reading any, so that a sparse region is quick to check.

Feeding n zero bytes multiplies the CRC register by x^(8n) modulo the polynomial of zlib, with bits
in reversed order: bit 31 is the coefficient of x^0.
"""

from __future__ import annotations

POLYNOMIAL = 0xEDB88320
ONE = 1 << 31


def _multiply(a: int, b: int) -> int:
    product = 0
    while a:
        if a & ONE:
            product ^= b
        a = a << 1 & 0xFFFFFFFF
        b = b >> 1 ^ POLYNOMIAL if b & 1 else b >> 1
    return product


def _powers() -> list[int]:
    """x^(8 * 2^i) for i up to 63."""
    power = 1 << 30  # x
    for _ in range(3):
        power = _multiply(power, power)
    powers = []
    for _ in range(64):
        powers.append(power)
        power = _multiply(power, power)
    return powers


_POWERS = _powers()


def crc32_zeros(crc: int, length: int) -> int:
    """zlib.crc32(bytes(length), crc)."""
    register = crc ^ 0xFFFFFFFF
    for i in range(length.bit_length()):
        if length >> i & 1:
            register = _multiply(_POWERS[i], register)
    return register ^ 0xFFFFFFFF
