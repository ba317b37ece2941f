"""CUDA's runtime library as the pretend card has it, where torch calls it by name."""

import ctypes


class Runtime:
    """The functions of CUDA's own library that are in use; each returns an error's number, or 0.

    Attributes:
        locked: bytes of the host's memory that are page-locked now, by their first address.
        refuses: whether nothing more can be locked.
    """

    def __init__(self, device: ctypes.CDLL):
        """Takes the compiled device."""
        self._device = device
        self.locked: dict[int, int] = {}
        self.refuses = False

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        if self.refuses:
            return 2
        self.locked[address] = size
        self._device.pretend_lock_pages(ctypes.c_void_p(address), ctypes.c_size_t(size))
        return 0

    def cudaHostUnregister(self, address: int) -> int:
        del self.locked[address]
        self._device.pretend_unlock_pages(ctypes.c_void_p(address))
        return 0
